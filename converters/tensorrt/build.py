"""ONNX -> the bytes of a TensorRT plan. The same code for TensorRT 10 and 11.

The network is strongly typed: every tensor is computed in the type that the graph gives it, so the
precision is decided (and proved) in ONNX. TensorRT 11 has nothing else: the FP16 and INT8 flags,
the calibrators and EXPLICIT_BATCH are gone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tensorrt as trt

from converters.errors import EngineFailed
from converters.tensorrt.monitor import Log, Monitor
from converters.tensorrt.progress import ProgressLine
from modelspec.files import atomic_write
from modelspec.profiles import Profile


@dataclass(frozen=True)
class BuildRequest:
    """``timing_cache`` is read if it exists, and written: a second build of the same or a similar
    graph measures no kernel twice."""

    onnx: Path
    profiles: Sequence[Profile]
    workspace_mib: int
    timing_cache: Path


def tensorrt_version() -> str:
    return str(trt.__version__)


def build_plan(request: BuildRequest, line: ProgressLine) -> bytes:
    """The plan; EngineFailed with TensorRT's errors, also when ``line`` stopped the build."""
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(request.onnx, network, log)
    config = _config(builder, request)
    config.progress_monitor = Monitor(line)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineFailed(f"TensorRT built no engine of {request.onnx}: {_reason(log.errors)}")
    _save_timings(config, request.timing_cache)
    return bytes(plan)


def _parse(onnx: Path, network: trt.INetworkDefinition, log: Log) -> None:
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx)):
        errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise EngineFailed(f"TensorRT cannot parse {onnx}: {_reason(errors or log.errors)}")


def _config(builder: trt.Builder, request: BuildRequest) -> trt.IBuilderConfig:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_mib << 20)
    # On by default; FP32 would then be multiplied with 11 bits, which is not what was proved.
    config.clear_flag(trt.BuilderFlag.TF32)
    for shapes in request.profiles:
        profile = builder.create_optimization_profile()
        for name, sizes in shapes.items():
            least, usual, most = map(list, (sizes.least, sizes.usual, sizes.most))
            profile.set_shape(name, trt.Dims(least), trt.Dims(usual), trt.Dims(most))
        if config.add_optimization_profile(profile) < 0:
            raise EngineFailed(f"TensorRT refuses the profile {dict(shapes)} for {request.onnx}")
    _use_timings(config, request.timing_cache)
    return config


def _use_timings(config: trt.IBuilderConfig, path: Path) -> None:
    cached = path.read_bytes() if path.is_file() else b""
    # TensorRT refuses the cache of another GPU or release: start with an empty one.
    if not config.set_timing_cache(config.create_timing_cache(cached), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _save_timings(config: trt.IBuilderConfig, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, bytes(config.get_timing_cache().serialize()))


def _reason(errors: Sequence[str]) -> str:
    return " ".join("; ".join(errors).split())[:600] or "no reason given"
