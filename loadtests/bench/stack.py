"""The stack for the duration of a benchmark, with everything on that a production gateway has: a
key, a limit, the audit log, the request log.

One model is added to the copy of the repository: a graph that returns its input, served by the
``onnxruntime`` backend, to compare that backend with ``identity_fp32``.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from loadtests.bench.errors import BenchError
from loadtests.bench.gateway_alone import LIMIT
from loadtests.own_stack import stack as own_stack
from loadtests.own_stack.stack import OwnStack
from modelspec.names import Role, member_name

IDENTITY, IDENTITY_ONNX, EMBEDDING = "identity_fp32", "bench_identity_onnx", "text_embedding"
IMAGES = "image_classification"
MODELS = (IDENTITY, EMBEDDING, IDENTITY_ONNX)
_CONFIG = 'backend: "onnxruntime"\nmax_batch_size: 64\ndynamic_batching { }\n'


class BenchStack(OwnStack):
    """A stack that serves ``EMBEDDING``."""

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
    repository: Path, models: Sequence[str] = MODELS, optimize_budget: str = ""
) -> Iterator[BenchStack]:
    """The stack over a copy of ``repository``. With a budget (as ``tidegate optimize`` takes it)
    text_embedding is optimized in the copy first."""

    def prepare(home: Path) -> None:
        state = home / ".tidegate"
        state.mkdir()
        (state / "gateway.toml").write_text(LIMIT, encoding="utf-8")
        if IDENTITY_ONNX in models:
            _add_identity(home / "model_repository")
        if optimize_budget:
            _optimize(home, optimize_budget)

    variables = {"TIDEGATE_REQUEST_LOG": "{home}/requests.jsonl"}
    with own_stack.running(repository, models, prepare=prepare, variables=variables) as stack:
        yield BenchStack(**vars(stack))


def _optimize(home: Path, budget: str) -> None:
    """Version 1 is the graph that ``up`` would serve, the next one what ``optimize`` picks."""
    for arguments in (
        ["convert", EMBEDDING],
        ["optimize", EMBEDDING, "--publish", "--commit", f"--budget={budget}"],
    ):
        result = subprocess.run(
            [sys.executable, "-m", "tidegate", *arguments],
            env={**os.environ, **own_stack.environment(home)},
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            raise BenchError(
                f"tidegate {arguments[0]} ended with {result.returncode}:\n{result.stderr[-2000:]}"
            )


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
