"""A TensorRT plan behind the interface of ``converters.runner``: what ONNX Runtime's session is for
the ONNX graph, so that the same proof measures both.

Every name of TensorRT's in this file is looked up in the binaries of two releases
(tests/converters/test_trt_names.py).
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt as trt

from converters.errors import EngineFailed
from converters.trt.device import Device
from converters.trt.monitor import Log
from modelspec.profiles import Profile, ShapeRange, profile_for

Arrays = dict[str, np.ndarray]
NUMPY_TYPES = {
    trt.DataType.FLOAT: np.float32,
    trt.DataType.HALF: np.float16,
    trt.DataType.INT8: np.int8,
    trt.DataType.INT32: np.int32,
    trt.DataType.INT64: np.int64,
    trt.DataType.BOOL: np.bool_,
    trt.DataType.UINT8: np.uint8,
}


class TrtRunner:
    """One plan, loaded; runs on the thread that made it."""

    def __init__(self, plan: Path, device: Device | None = None) -> None:
        self._device = device or Device()
        self._log = Log()
        self._runtime = trt.Runtime(self._log)
        engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if engine is None:
            raise EngineFailed(f"TensorRT cannot load {plan}: {'; '.join(self._log.errors)[:300]}")
        names = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
        given = {name: engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        self.inputs = [name for name in names if given[name]]
        self.outputs = [name for name in names if not given[name]]
        self._types = {name: NUMPY_TYPES[engine.get_tensor_dtype(name)] for name in names}
        self.profiles: list[Profile] = [_profile(engine, self.inputs, n) for n in _count(engine)]
        self._engine = engine
        self._context = engine.create_execution_context()
        self._chosen = 0

    def run(self, names: Sequence[str] | None, feed: Mapping[str, Any]) -> list[Any]:
        """The outputs for this batch; EngineFailed or ValueError when it cannot be run.

        A larger batch than the engine takes is asked in parts: a proof has some, Triton sends none.
        """
        fed: Arrays = {name: self._as_taken(name, feed[name]) for name in self.inputs}
        rows, most = len(fed[self.inputs[0]]), self.profiles[-1][self.inputs[0]].most[0]
        parts: list[Arrays] = [
            self._run({name: array[start : start + most] for name, array in fed.items()})
            for start in range(0, max(1, rows), most)
        ]
        return [np.concatenate([part[name] for part in parts]) for name in names or self.outputs]

    def _run(self, fed: Arrays) -> Arrays:
        self._choose({name: array.shape for name, array in fed.items()})
        for name, array in fed.items():
            if not self._context.set_input_shape(name, array.shape):
                raise EngineFailed(f"TensorRT refuses {name} of shape {list(array.shape)}")
        answers: Arrays = {name: self._empty(name) for name in self.outputs}
        with ExitStack() as rooms:
            positions: dict[str, int] = {
                name: rooms.enter_context(self._device.room(array))
                for name, array in (fed | answers).items()
            }
            for name, address in positions.items():
                self._context.set_tensor_address(name, address)
            for name, array in fed.items():
                self._device.put(array, positions[name])
            if not self._context.execute_async_v3(self._device.stream):
                raise EngineFailed(f"TensorRT did not run: {'; '.join(self._log.errors)[:300]}")
            for name, array in answers.items():
                self._device.get(positions[name], array)
            self._device.wait()
        return answers

    def _as_taken(self, name: str, values: Any) -> np.ndarray:
        array, wanted = np.ascontiguousarray(values), np.dtype(self._types[name])
        if array.dtype != wanted:
            raise EngineFailed(f"input {name} is {array.dtype}, and the engine takes {wanted}")
        return array

    def _choose(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        wanted = profile_for(self.profiles, shapes)
        if wanted == self._chosen:
            return
        if not self._context.set_optimization_profile_async(wanted, self._device.stream):
            raise EngineFailed(f"TensorRT does not change to profile {wanted}")
        self._device.wait()
        self._chosen = wanted

    def _empty(self, name: str) -> np.ndarray:
        shape = _as_tuple(self._context.get_tensor_shape(name))
        if any(axis < 0 for axis in shape):
            raise EngineFailed(f"output {name} has a shape that depends on values: {list(shape)}")
        return np.empty(shape, self._types[name])


def _count(engine: trt.ICudaEngine) -> range:
    return range(engine.num_optimization_profiles)


def _profile(engine: trt.ICudaEngine, inputs: Sequence[str], number: int) -> Profile:
    return {
        name: ShapeRange(*map(_as_tuple, engine.get_tensor_profile_shape(name, number)))
        for name in inputs
    }


def _as_tuple(dims: trt.Dims) -> tuple[int, ...]:
    return tuple(dims[place] for place in range(len(dims)))
