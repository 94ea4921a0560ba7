"""Our own stack for the duration of a benchmark: ``tidegate up`` in a scratch home, on free ports.

One model is added to the copy of the repository: a graph that returns its input, served by the
``onnxruntime`` backend, to compare that backend with ``identity_fp32``.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench.errors import BenchError
from loadtests.bench.processes import free_ports, start
from modelspec.names import Role, member_name

START_S = 600.0  # a cold machine converts the models first
IDENTITY, IDENTITY_ONNX, EMBEDDING = "identity_fp32", "bench_identity_onnx", "text_embedding"
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
    """The URLs of the gateway and Triton, and the API key. ``repository`` is the scratch copy."""

    gateway: str
    triton: str
    key: str
    repository: Path

    @property
    def model_file(self) -> Path:
        return newest(self.repository / member_name(EMBEDDING, Role.ENGINE)) / "model.onnx"

    @property
    def tokenizer_file(self) -> Path:
        return newest(self.repository / member_name(EMBEDDING, Role.PRE)) / "tokenizer.json"


def newest(model: Path) -> Path:
    """The highest version folder of a model."""
    versions = [int(folder.name) for folder in model.glob("*") if folder.name.isdecimal()]
    if not versions:
        raise BenchError(f"{model.name} has no version: run `tidegate convert text_embedding`")
    return model / str(max(versions))


@contextmanager
def running(repository: Path) -> Iterator[BenchStack]:
    """The stack, with one gateway worker, over a copy of ``repository``; stopped on exit."""
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as home_name:
        home = Path(home_name)
        copy = home / "model_repository"
        shutil.copytree(repository, copy)
        _add_identity(copy)
        ports = free_ports(len(_FLAGS))
        server = start("tidegate up", _command(ports), _environment(home), home / "up.log")
        try:
            server.wait_ready(f"http://127.0.0.1:{ports[0]}/readyz", START_S)
            key = (home / ".tidegate" / "dev.key").read_text(encoding="utf-8").strip()
            yield BenchStack(
                f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}", key, copy
            )
        finally:
            server.stop()


def _command(ports: list[int]) -> list[str]:
    flags = [f"--{flag}={port}" for flag, port in zip(_FLAGS, ports, strict=True)]
    models = [IDENTITY, EMBEDDING, IDENTITY_ONNX]
    return [sys.executable, "-m", "tidegate", "up", *models, "--workers=1", *flags]


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
