"""A converted graph as a TensorRT engine, proved by the same checks as the graph.

Built by ``onnx2trt`` in a process of its own and cached under its stamp: another GPU, driver,
TensorRT, graph or profile means another engine.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from converters.cache import PROOF_FILE, Progress, content_key, conversion
from converters.conversion import Converted, prove_graph
from converters.errors import EngineFailed
from converters.proof.record import Record
from converters.tensorrt import reproduce, stamp
from converters.tensorrt.available import find_gpu, missing
from converters.tensorrt.onnx_inputs import read_inputs
from converters.tensorrt.stamp import STAMP_FILE, Stamp
from modelspec.hardware import TENSORRT
from modelspec.layout import ENGINE_FILE, PLAN_FILE
from modelspec.model import ModelSpec
from modelspec.profiles import batch_sizes, profiles

# The files of an engine's version folder; the proof is written last, when all of them exist.
FILES = (PLAN_FILE, STAMP_FILE, reproduce.SCRIPT, ENGINE_FILE)


@dataclass(frozen=True)
class Engine:
    """A plan proved on this machine's GPU. ``record`` contains the graph's proof too."""

    folder: Path
    record: Record

    def files(self) -> Mapping[str, Path]:
        """The files for the version folder, by name."""
        return {name: self.folder / name for name in FILES}

    @property
    def profiles(self) -> tuple[str | None, ...]:
        """The config profiles to prove: the graph beside the plan, and the plan."""
        return (None, TENSORRT)


def why_not_here() -> str:
    """Why no engine can be built on this machine, in one line; "" if one can."""
    return missing()


def stamp_here(onnx: Path, spec: ModelSpec) -> Stamp:
    """The stamp of an engine of this graph on this machine. EngineUnavailable if none can be built
    here, EngineFailed if TensorRT does not support such tensors."""
    gpu = find_gpu()
    from converters.tensorrt.build import tensorrt_version

    try:
        shapes = profiles(read_inputs(onnx), batch_sizes(spec.max_batch_size), spec.lengths)
    except ValueError as error:
        raise EngineFailed(f"{spec.name} cannot have a TensorRT engine: {error}") from error
    return stamp.stamp_of(onnx, gpu, tensorrt_version(), shapes)


def unavailable_reason(folder: Path) -> str:
    """Why the plan in a version folder is not for this machine and the graph beside it; "" if it
    is. EngineUnavailable if there is no GPU."""
    built = stamp.read(folder)
    if built is None:
        return "there is no plan with its stamp"
    gpu = find_gpu()
    from converters.tensorrt.build import tensorrt_version

    here = stamp.stamp_of(folder / ENGINE_FILE, gpu, tensorrt_version(), ())
    return "; ".join(built.differences(replace(here, profiles=built.profiles)))


def build_engine(converted: Converted, spec: ModelSpec, report: Progress) -> Engine:
    """The engine of the graph that ``spec`` declares, from the cache or newly built. EngineFailed
    or ProofFailed if there is none."""
    target = stamp_here(converted.engine, spec)
    record = converted.record
    # The name is part of the key because the record beside the plan contains it.
    settings = [record.name, asdict(target), record.source_sha256, record.accepted]
    key = content_key(json.dumps(settings), __name__, type(converted.task).__module__)

    def build(folder: Path) -> None:
        report(f"{record.name}: building a TensorRT engine for {target.gpu}")
        _build(converted.engine, spec, folder)
        report(f"{record.name}: proving the TensorRT engine against the original")
        proved = _proved(converted, target, folder)
        proved.require()
        proved.save(folder)

    folder = conversion(record.name, key, build)
    return Engine(folder, Record.load(folder / PROOF_FILE))


def _build(onnx: Path, spec: ModelSpec, folder: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "converters.tensorrt.onnx2trt",
        str(onnx),
        "--output",
        str(folder),
    ]
    command.append(f"--max-batch={spec.max_batch_size}")
    if spec.lengths:
        command.append(f"--lengths={','.join(map(str, spec.lengths))}")
    # Its stderr is ours: the user sees the progress and the reason for a failure.
    process = subprocess.run(command, check=False)
    if process.returncode:
        raise EngineFailed(
            f"{spec.name}: no TensorRT engine was built (see the lines above); the served version "
            "is unchanged. To publish the ONNX graph, leave out --engine tensorrt"
        )


def _proved(converted: Converted, target: Stamp, folder: Path) -> Record:
    from converters.tensorrt.runner import TrtRunner

    what = f"the TensorRT engine on {target.gpu}"
    plan = folder / PLAN_FILE
    proof = prove_graph(converted.task, plan, converted.reference, TrtRunner, what)
    tools = {
        **converted.record.tools,
        "tensorrt": target.tensorrt,
        "driver": target.driver,
        "gpu": target.gpu,
    }
    return replace(converted.record.add(proof), tools=tools)
