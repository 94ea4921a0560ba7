"""A converted graph as a TensorRT engine, proved by the same checks as the graph.

Built by ``onnx2trt`` in a process of its own and kept in the cache under its stamp: another GPU,
driver, TensorRT, graph or profile is another engine.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from converters.cache import PROOF_FILE, Say, content_key, conversion
from converters.conversion import Converted, prove_graph
from converters.errors import EngineFailed
from converters.record import Record
from converters.trt import reproduce, stamp
from converters.trt.available import find_gpu, missing
from converters.trt.onnx_inputs import read_inputs
from converters.trt.stamp import STAMP_FILE, Stamp
from modelspec.layout import ENGINE_FILE, PLAN_FILE
from modelspec.model import ModelSpec
from modelspec.profiles import batch_sizes, profiles

# Beside the plan in its version folder; the proof is written there when all of it was made.
FILES = (PLAN_FILE, STAMP_FILE, reproduce.SCRIPT, ENGINE_FILE)


@dataclass(frozen=True)
class Engine:
    """A plan that held its proof on this machine's GPU. ``record`` has the graph's proof too."""

    folder: Path
    record: Record

    def files(self) -> Mapping[str, Path]:
        """What belongs into the version folder, by name."""
        return {name: self.folder / name for name in FILES}


def why_not_here() -> str:
    """Why no engine can be built on this machine, in one line; "" where it can."""
    return missing()


def stamp_here(onnx: Path, spec: ModelSpec) -> Stamp:
    """The stamp that an engine of this graph has on this machine; EngineUnavailable where there is
    none, EngineFailed where TensorRT takes no such tensors."""
    gpu = find_gpu()
    from converters.trt.build import tensorrt_version

    try:
        shapes = profiles(read_inputs(onnx), batch_sizes(spec.max_batch_size), spec.lengths)
    except ValueError as error:
        raise EngineFailed(f"{spec.name} has no TensorRT engine: {error}") from error
    return stamp.stamp_of(onnx, gpu, tensorrt_version(), shapes)


def why_not_of_here(folder: Path) -> str:
    """Why the plan in a version folder is not for this machine and the graph beside it; "" when it
    is. EngineUnavailable where there is no GPU."""
    found = stamp.read(folder)
    if found is None:
        return "there is no plan with its stamp"
    gpu = find_gpu()
    from converters.trt.build import tensorrt_version

    here = stamp.stamp_of(folder / ENGINE_FILE, gpu, tensorrt_version(), ())
    return "; ".join(found.differences(replace(here, profiles=found.profiles)))


def build_engine(converted: Converted, spec: ModelSpec, say: Say) -> Engine:
    """The engine of the graph that ``spec`` declares, from the cache or built; EngineFailed or
    ProofFailed: then there is none."""
    wanted = stamp_here(converted.engine, spec)
    record = converted.record
    # With the name, which the record that is kept beside the plan holds.
    held = [record.name, asdict(wanted), record.source_sha256, record.accepted]
    key = content_key(json.dumps(held))

    def make(folder: Path) -> None:
        say(f"{record.name}: building a TensorRT engine for {wanted.gpu}")
        _build(converted.engine, spec, folder)
        say(f"{record.name}: proving the TensorRT engine against the original")
        proved = _proved(converted, wanted, folder)
        proved.require()
        proved.save(folder)

    folder = conversion(record.name, key, PROOF_FILE, make)
    return Engine(folder, Record.load(folder / PROOF_FILE))


def _build(onnx: Path, spec: ModelSpec, folder: Path) -> None:
    command = [sys.executable, "-m", "converters.onnx2trt", str(onnx), "--output", str(folder)]
    command.append(f"--max-batch={spec.max_batch_size}")
    if spec.lengths:
        command.append(f"--lengths={','.join(map(str, spec.lengths))}")
    # Its progress goes where ours goes, and so does the reason for a failure.
    run = subprocess.run(command, check=False)
    if run.returncode:
        raise EngineFailed(
            f"{spec.name}: no TensorRT engine was built (the lines above say why); what was served "
            "is served as before. Without --engine tensorrt the ONNX graph is published"
        )


def _proved(converted: Converted, built_for: Stamp, folder: Path) -> Record:
    from converters.trt_runner import TrtRunner

    what = f"the TensorRT engine on {built_for.gpu}"
    plan = folder / PLAN_FILE
    proof = prove_graph(converted.task, plan, converted.reference, TrtRunner, what)
    tools = {
        **converted.record.tools,
        "tensorrt": built_for.tensorrt,
        "driver": built_for.driver,
        "gpu": built_for.gpu,
    }
    return replace(converted.record.add(proof), tools=tools)
