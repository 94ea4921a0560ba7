"""Our own stack for the duration of a benchmark: ``tidegate up`` in a scratch home, on free ports.

One model is added to the copy of the repository: a graph that returns its input, served by the
``onnxruntime`` backend, to compare that backend with ``identity_fp32``.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench.cpu import ProcessTree, stack_process
from loadtests.bench.errors import BenchError
from loadtests.bench.processes import free_ports, start
from modelspec.names import Role, member_name

START_S = 600.0  # a cold machine converts the models first
IDENTITY, IDENTITY_ONNX, EMBEDDING = "identity_fp32", "bench_identity_onnx", "text_embedding"
IMAGES = "image_classification"
MODELS = (IDENTITY, EMBEDDING, IDENTITY_ONNX)
_CONFIG = 'backend: "onnxruntime"\nmax_batch_size: 64\ndynamic_batching { }\n'
_FLAGS = (
    "gateway-port",
    "triton-http-port",
    "triton-grpc-port",
    "triton-metrics-port",
    "grpc-port",
    "admin-port",
)


@dataclass(frozen=True)
class BenchStack:
    """The URLs of the gateway and Triton, and the API key; ``triton_grpc`` and ``gateway_grpc`` are
    HOST:PORT.
    ``repository`` is the scratch copy."""

    gateway: str
    triton: str
    triton_grpc: str
    gateway_grpc: str
    key: str
    repository: Path
    processes: ProcessTree

    @property
    def model_file(self) -> Path:
        return newest(self.repository / member_name(EMBEDDING, Role.ENGINE)) / "model.onnx"

    @property
    def first_model_file(self) -> Path:
        """The lowest version's: before ``optimize`` it was the only one."""
        return versions(self.repository / member_name(EMBEDDING, Role.ENGINE))[0] / "model.onnx"

    @property
    def tokenizer_file(self) -> Path:
        return newest(self.repository / member_name(EMBEDDING, Role.PRE)) / "tokenizer.json"


def newest(model: Path) -> Path:
    """The highest version folder of a model."""
    return versions(model)[-1]


def versions(model: Path) -> list[Path]:
    """The version folders of a model, in their order; at least one."""
    versions = [folder for folder in model.glob("*") if folder.name.isdecimal()]
    if not versions:
        raise BenchError(f"{model.name} has no version: run `tidegate convert text_embedding`")
    return sorted(versions, key=lambda folder: int(folder.name))


@contextmanager
def running(
    repository: Path,
    models: Sequence[str] = MODELS,
    optimize_budget: str = "",
    replicas: int = 1,
) -> Iterator[BenchStack]:
    """The stack over a copy of ``repository``, with one gateway worker and so many Tritons; stopped
    on exit. With a budget (as ``tidegate optimize`` takes it) text_embedding is optimized in the
    copy first."""
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as home_name:
        home = Path(home_name)
        copy = home / "model_repository"
        shutil.copytree(repository, copy)
        if IDENTITY_ONNX in models:
            _add_identity(copy)
        if optimize_budget:
            _optimize(home, optimize_budget)
        ports = free_ports(len(_FLAGS))
        server = start(
            "tidegate up", _command(models, ports, replicas), _environment(home), home / "up.log"
        )
        try:
            server.wait_ready(f"http://127.0.0.1:{ports[0]}/readyz", START_S)
            key = (home / ".tidegate" / "dev.key").read_text(encoding="utf-8").strip()
            gateway, triton = (f"http://127.0.0.1:{port}" for port in ports[:2])
            processes = ProcessTree(server.process.pid, stack_process)
            triton_grpc, gateway_grpc = (f"127.0.0.1:{ports[index]}" for index in (2, 4))
            yield BenchStack(gateway, triton, triton_grpc, gateway_grpc, key, copy, processes)
        finally:
            server.stop()


def _optimize(home: Path, budget: str) -> None:
    command = [sys.executable, "-m", "tidegate", "optimize", EMBEDDING, "--publish", "--commit"]
    result = subprocess.run(
        [*command, f"--budget={budget}"],
        env={**os.environ, **_environment(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise BenchError(
            f"tidegate optimize ended with {result.returncode}:\n{result.stderr[-2000:]}"
        )


def _command(models: Sequence[str], ports: list[int], replicas: int) -> list[str]:
    flags = [f"--{flag}={port}" for flag, port in zip(_FLAGS, ports, strict=True)]
    more = ["--workers=1", f"--replicas={replicas}"]
    return [sys.executable, "-m", "tidegate", "up", *models, *more, *flags]


def _environment(home: Path) -> dict[str, str]:
    return {"TIDEGATE_HOME": str(home), "TIDEGATE_REPOSITORY": str(home / "model_repository")}


def _add_identity(repository: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    folder = repository / IDENTITY_ONNX
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(_CONFIG, encoding="utf-8")
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", "values"])]
        for name in ("INPUT0", "OUTPUT0")
    )
    node = helper.make_node("Identity", ["INPUT0"], ["OUTPUT0"])
    graph = helper.make_graph([node], IDENTITY_ONNX, inputs, outputs)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(
        helper.make_model(graph, opset_imports=opset, ir_version=9), folder / "1" / "model.onnx"
    )
