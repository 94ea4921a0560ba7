"""A fake of the package tensorrt, which needs a GPU: it tests our own orchestration. Its binaries
show that TensorRT has these names (test_trt_names.py), and mypy with its stubs that they take these
arguments; that its answers are right is not tested here (docs/gpu.md).

A "plan" is the ONNX graph with the profiles it was built with; ONNX Runtime executes it, on arrays
in this process's own memory.
"""

import ctypes
import json
import sys
import time
from contextlib import contextmanager
from enum import IntEnum
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

VERSION = "10.13.3.9"
STEPS = 4
# What the last build received, and what to do instead of building.
seen: dict[str, Any] = {}
faults: dict[str, Any] = {}


class DataType(IntEnum):
    FLOAT, HALF, INT8, INT32, INT64, BOOL, UINT8 = range(7)


_TYPES = {"tensor(float)": DataType.FLOAT, "tensor(int64)": DataType.INT64}
TensorIOMode = IntEnum("TensorIOMode", "INPUT OUTPUT")
MemoryPoolType = IntEnum("MemoryPoolType", "WORKSPACE")
BuilderFlag = IntEnum("BuilderFlag", "TF32")
NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 1})
Dims = tuple
INetworkDefinition = IBuilderConfig = ICudaEngine = object


class ILogger:
    Severity = IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")


class IProgressMonitor:
    pass


class Builder:
    def __init__(self, log: Any) -> None:
        self._log = log

    def create_network(self, flags: int) -> Any:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return SimpleNamespace(onnx="")

    def create_builder_config(self) -> Any:
        return _Config()

    def create_optimization_profile(self) -> Any:
        profile: dict[str, Any] = {}
        return SimpleNamespace(
            shapes=profile, set_shape=lambda name, *dims: profile.update({name: dims})
        )

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        seen["config"] = config
        monitor = config.progress_monitor
        steps, step_s = faults.get("slow", (STEPS, 0))
        monitor.phase_start("Building Engine", None, steps)
        for step in range(steps):
            time.sleep(step_s)
            if not monitor.step_complete("Building Engine", step):
                return None
        monitor.phase_finish("Building Engine")
        if "build" in faults:
            self._log.log(ILogger.Severity.WARNING, "an unrelated warning")
            self._log.log(ILogger.Severity.ERROR, faults["build"])
            return None
        config.timings.append("measured")
        with open(network.onnx, "rb") as file:  # noqa: PTH123 - a string, as for TensorRT
            header = json.dumps([p.shapes for p in config.profiles]).encode()
            return header + b"\0" + file.read()


class _Config:
    def __init__(self) -> None:
        self.limits: dict[Any, int] = {}
        self.cleared: list[Any] = []
        self.profiles: list[Any] = []
        self.timings: list[str] = []

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.limits[pool] = size

    def clear_flag(self, flag: Any) -> None:
        self.cleared.append(flag)

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile)
        return faults.get("profile", len(self.profiles) - 1)

    def create_timing_cache(self, cached: bytes) -> bytes:
        return cached

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        if cache.startswith(b"of another GPU"):
            return False
        self.timings = json.loads(cache or b"[]")
        return True

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: json.dumps(self.timings).encode())


class OnnxParser:
    def __init__(self, network: Any, log: Any) -> None:
        self._network = network
        self.num_errors = len(faults.get("parse", ()))

    def parse_from_file(self, path: str) -> bool:
        self._network.onnx = path
        return not self.num_errors

    def get_error(self, index: int) -> Any:
        return SimpleNamespace(desc=lambda: faults["parse"][index])


class Runtime:
    def __init__(self, log: Any) -> None:
        self._log = log

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        header, separator, graph = plan.partition(b"\0")
        if not separator:
            self._log.log(ILogger.Severity.ERROR, "the plan was built by another TensorRT")
            return None
        return _Engine(json.loads(header), graph)


class _Engine:
    def __init__(self, profiles: Any, graph: bytes) -> None:
        import onnxruntime

        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(graph, providers=providers)
        self.profiles = profiles
        self.tensors = {tensor.name: tensor for tensor in self.session.get_inputs()}
        self._inputs = set(self.tensors)
        self.tensors |= {tensor.name: tensor for tensor in self.session.get_outputs()}
        self.num_io_tensors = len(self.tensors)
        self.num_optimization_profiles = len(profiles)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return _TYPES[self.tensors[name].type]

    def get_tensor_profile_shape(self, name: str, number: int) -> Any:
        return [tuple(dims) for dims in self.profiles[number][name]]

    def create_execution_context(self) -> Any:
        return _Context(self)


class _Context:
    """Refuses a shape outside the selected profile, as TensorRT does."""

    def __init__(self, engine: _Engine) -> None:
        self._engine, self._profile = engine, 0
        self._shapes: dict[str, Any] = {}
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, number: int, stream: int) -> bool:
        seen.setdefault("switches", []).append(number)
        self._profile = number
        return True

    def set_input_shape(self, name: str, shape: Any) -> bool:
        least, _, most = self._engine.profiles[self._profile][name]
        self._shapes[name] = shape
        return all(low <= n <= high for low, n, high in zip(least, shape, most, strict=True))

    def get_tensor_shape(self, name: str) -> Any:
        if "axis" in faults:
            return (faults["axis"],)
        sizes = {
            axis: n
            for fed, shape in self._shapes.items()
            for axis, n in zip(self._engine.tensors[fed].shape, shape, strict=True)
        }
        return tuple(sizes.get(axis, axis) for axis in self._engine.tensors[name].shape)

    def set_tensor_address(self, name: str, address: int) -> None:
        self._addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        feed = {name: self._array(name, shape) for name, shape in self._shapes.items()}
        names = [name for name in self._engine.tensors if name not in feed]
        for name, values in zip(names, self._engine.session.run(names, feed), strict=True):
            self._array(name, values.shape)[...] = values
        return True

    def _array(self, name: str, shape: Any) -> np.ndarray:
        types = {DataType.FLOAT: np.float32, DataType.INT64: np.int64}
        dtype = np.dtype(types[self._engine.get_tensor_dtype(name)])
        size = int(np.prod(shape)) * dtype.itemsize
        memory = (ctypes.c_char * size).from_address(self._addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)


class HostDevice:
    """``converters.tensorrt.device.Device`` in this process's memory."""

    stream = 7

    def __init__(self) -> None:
        self.allocated: dict[int, Any] = {}
        self.pending: list[tuple[np.ndarray, int]] = []

    @contextmanager
    def buffer(self, array: np.ndarray) -> Any:
        memory = (ctypes.c_char * max(1, array.nbytes))()
        address = ctypes.addressof(memory)
        self.allocated[address] = memory
        try:
            yield address
        finally:
            del self.allocated[address]

    def put(self, array: np.ndarray, address: int) -> None:
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def get(self, address: int, array: np.ndarray) -> None:
        """Copies when ``wait`` is called, and not before, as on a GPU."""
        assert address in self.allocated
        self.pending.append((array, address))

    def wait(self) -> None:
        for array, address in self.pending:
            ctypes.memmove(array.ctypes.data, address, array.nbytes)
        self.pending.clear()


def as_module() -> ModuleType:
    """This file as the module that ``import tensorrt`` returns."""
    module = ModuleType("tensorrt")
    module.__dict__.update(vars(sys.modules[__name__]))
    module.__dict__["__version__"] = VERSION
    module.__spec__ = ModuleSpec("tensorrt", None, origin="fake")
    return module
