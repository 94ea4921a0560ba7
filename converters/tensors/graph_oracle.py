"""What an executor that shares nothing with ONNX Runtime answers, in a process of its own.

    python -m converters.tensors.graph_oracle MODEL ROWS.npz ANSWERS.npz

That is onnx's own reference evaluator. Where it lacks an operator, or takes too long, ONNX Runtime
answers with every optimisation off, and the proof says so.
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters.original import ask
from converters.sources.tensor_source import Group, Told
from converters.tensors.graph_probe import limit_memory, reason_of
from converters.tensors.group_files import pack_groups, unpack_groups
from converters.tensors.proof import as_fed, as_kept, joined, single_rows

# onnx/onnx#7805: LRN sums over another window (1.23); ONNX Runtime and torch agree.
WRONG_THERE = {"LRN"}
PATIENCE_S = 3.0  # for one row
Answer = Callable[[Group], dict[str, np.ndarray]]


def ask_reference(path: Path, groups: Sequence[Group], folder: Path) -> Told:
    """The answers to each group, asked about one row at a time."""
    questions = folder / "rows.npz"
    np.savez(questions, **pack_groups(groups, "in"))
    answers = folder / "reference.npz"
    told = ask("converters.tensors.graph_oracle", path, questions, answers=answers)
    return Told(unpack_groups(told, "out"), str(told["oracle"]))


def main(model: str, questions: str, answers: str) -> None:
    limit_memory(model)
    with np.load(questions) as stored:
        groups = unpack_groups(stored, "in")
    answer, oracle = _reference(model, groups[0])
    if answer is None:
        answer, oracle = _unoptimised(model), "ONNX Runtime without optimisation"
    try:
        outputs = [joined([answer(row) for row in single_rows(group)]) for group in groups]
    except Exception as error:  # ONNX Runtime's errors share no base class
        sys.exit(
            f"{oracle} fails on a sample ({reason_of(error)}): mend the graph, or give --samples "
            "that it takes"
        )
    np.savez(answers, oracle=np.array(oracle), **pack_groups(outputs, "out"))


def _reference(model: str, group: Group) -> tuple[Answer | None, str]:
    """onnx's evaluator, if it can answer to the first row, and in time."""
    from onnx.reference import ReferenceEvaluator

    first = next(single_rows(group))
    wrong = _known_to_be_wrong(model)
    if wrong:
        return None, f"none ({wrong})"
    try:
        evaluator = ReferenceEvaluator(model)
        started = time.monotonic()
        _named(evaluator.output_names, evaluator.run(None, as_fed(first)))
    except Exception as error:  # it raises whatever Python does
        return None, f"none ({error})"
    if time.monotonic() - started > PATIENCE_S:
        return None, "none (too slow)"
    return (
        lambda row: _named(evaluator.output_names, evaluator.run(None, as_fed(row))),
        "onnx.reference",
    )


def _known_to_be_wrong(model: str) -> str:
    """An operator that onnx's evaluator computes otherwise than its own specification."""
    import onnx

    kinds = {node.op_type for node in onnx.load(model, load_external_data=False).graph.node}
    return ", ".join(sorted(kinds & WRONG_THERE))


def _unoptimised(model: str) -> Answer:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_outputs()]
    return lambda row: _named(names, session.run(names, as_fed(row)))


def _named(names: Sequence[str], values: Any) -> dict[str, np.ndarray]:
    return {
        str(name): as_kept(np.asarray(value)) for name, value in zip(names, values, strict=True)
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
