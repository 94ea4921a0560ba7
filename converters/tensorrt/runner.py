"""A TensorRT plan behind the interface of ``proof.runner``, the counterpart of ONNX Runtime's
session: the same proof measures both.

Every TensorRT name in this file is looked up in the binaries of two releases
(tests/converters/tensorrt/test_trt_names.py).
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt as trt

from converters.errors import EngineFailed
from converters.tensorrt.device import Device
from converters.tensorrt.monitor import Log
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
    """One loaded plan; runs on the thread that created it."""

    def __init__(self, plan: Path, device: Device | None = None) -> None:
        self._device = device or Device()
        self._log = Log()
        self._runtime = trt.Runtime(self._log)
        engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if engine is None:
            raise EngineFailed(f"TensorRT cannot load {plan}: {'; '.join(self._log.errors)[:300]}")
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        is_input = {name: engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        self.inputs = [name for name in names if is_input[name]]
        self.outputs = [name for name in names if not is_input[name]]
        self._types = {name: NUMPY_TYPES[engine.get_tensor_dtype(name)] for name in names}
        self.profiles: list[Profile] = [_profile(engine, self.inputs, n) for n in _count(engine)]
        self._engine = engine
        self._context = engine.create_execution_context()
        self._active_profile = 0

    def run(self, names: Sequence[str] | None, feed: Mapping[str, Any]) -> list[Any]:
        """The outputs for this batch; EngineFailed or ValueError if it cannot be run.

        A batch larger than the engine's maximum is run in parts: proofs have some, Triton sends
        none.
        """
        inputs: Arrays = {name: self._input(name, feed[name]) for name in self.inputs}
        rows, limit = len(inputs[self.inputs[0]]), self.profiles[-1][self.inputs[0]].most[0]
        parts: list[Arrays] = [
            self._run({name: array[start : start + limit] for name, array in inputs.items()})
            for start in range(0, max(1, rows), limit)
        ]
        return [np.concatenate([part[name] for part in parts]) for name in names or self.outputs]

    def _run(self, inputs: Arrays) -> Arrays:
        self._select_profile({name: array.shape for name, array in inputs.items()})
        for name, array in inputs.items():
            if not self._context.set_input_shape(name, array.shape):
                raise EngineFailed(f"TensorRT refuses {name} of shape {list(array.shape)}")
        outputs: Arrays = {name: self._empty(name) for name in self.outputs}
        with ExitStack() as buffers:
            addresses: dict[str, int] = {
                name: buffers.enter_context(self._device.buffer(array))
                for name, array in (inputs | outputs).items()
            }
            for name, address in addresses.items():
                self._context.set_tensor_address(name, address)
            for name, array in inputs.items():
                self._device.put(array, addresses[name])
            if not self._context.execute_async_v3(self._device.stream):
                raise EngineFailed(f"TensorRT did not run: {'; '.join(self._log.errors)[:300]}")
            for name, array in outputs.items():
                self._device.get(addresses[name], array)
            self._device.wait()
        return outputs

    def _input(self, name: str, values: Any) -> np.ndarray:
        array, dtype = np.ascontiguousarray(values), np.dtype(self._types[name])
        if array.dtype != dtype:
            raise EngineFailed(f"input {name} is {array.dtype}, but the engine takes {dtype}")
        return array

    def _select_profile(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        profile = profile_for(self.profiles, shapes)
        if profile == self._active_profile:
            return
        if not self._context.set_optimization_profile_async(profile, self._device.stream):
            raise EngineFailed(f"TensorRT does not change to profile {profile}")
        self._device.wait()
        self._active_profile = profile

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
    return tuple(dims[axis] for axis in range(len(dims)))
