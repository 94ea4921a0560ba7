"""Run a graph with an executor that shares nothing with ONNX Runtime, in a process of its own.

    python -m converters.tasks.tensors.graph_reference MODEL ROWS.npz ANSWERS.npz

That is onnx's own reference evaluator. Where it lacks an operator, or takes too long, ONNX Runtime
runs the graph with every optimisation off, and the proof says so.
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters.proof.reference_process import ask, noise_of_fp32, repeat_positions
from converters.proof.runner import NO_SPINNING
from converters.proof.statefulness import require_same_again
from converters.sources.batch_files import pack_batches, unpack_batches
from converters.sources.graph_probe import limit_memory, reason_of
from converters.sources.tensor_source import Batch, ReferenceOutputs, to_feed
from converters.tasks.tensors.checks import doubled, from_runtime, joined, single_rows

REFERENCE = "onnx.reference"
# onnx/onnx#7805: LRN sums over another window (1.23); ONNX Runtime and torch agree.
MISCOMPUTED = {"LRN"}
PATIENCE_S = 3.0  # for one row
EXACT_ROWS = 8  # rows of a group that also run in FP64, which is slow
Executor = Callable[[Batch], dict[str, np.ndarray]]


def ask_graph(path: Path, groups: Sequence[Batch], folder: Path) -> ReferenceOutputs:
    """The original's outputs for each group, one row at a time."""
    rows_file = folder / "rows.npz"
    np.savez(rows_file, **pack_batches(groups, "in"))
    answers_file = folder / "reference.npz"
    reported = ask(
        "converters.tasks.tensors.graph_reference", path, rows_file, answers=answers_file
    )
    outputs, noise = (unpack_batches(reported, part) for part in ("out", "noise"))
    return ReferenceOutputs(outputs, str(reported["executor"]), noise)


def main(model: str, rows_file: str, target: str) -> None:
    limit_memory(model)
    with np.load(rows_file) as stored:
        groups = unpack_batches(stored, "in")
    executor, executor_name = _reference(model, groups[0])
    if executor is None:
        executor, executor_name = _unoptimised(model), "ONNX Runtime without optimisation"
    try:
        outputs = [joined([executor(row) for row in single_rows(group)]) for group in groups]
    except Exception as error:  # ONNX Runtime's errors share no base class
        sys.exit(
            f"{executor_name} fails on a sample ({reason_of(error)}): fix the graph, or give "
            "--samples that it takes"
        )
    _require_one_row_each(groups, outputs)
    _require_stateless(model, executor_name, groups, outputs)
    if executor_name == REFERENCE:
        noise = [
            _noise(model, group, reported) for group, reported in zip(groups, outputs, strict=True)
        ]
    else:
        noise = [{} for _ in groups]
    arrays = {**pack_batches(outputs, "out"), **pack_batches(noise, "noise")}
    np.savez(target, executor=np.array(executor_name), **arrays)


def _require_one_row_each(groups: Sequence[Batch], reported: Sequence[Batch]) -> None:
    """End the process where an output does not have one row for each row of the inputs."""
    for group, outputs in zip(groups, reported, strict=True):
        rows = len(next(iter(group.values())))
        for name, values in outputs.items():
            if len(values) != rows:
                sys.exit(
                    f"output {name!r} has {len(values)} rows for {rows} samples, run one at a "
                    "time: its first axis must be the batch's, one row for each row of the inputs. "
                    "Export it without the operator that adds or drops rows (Unique, NonZero, "
                    "Compress, NonMaxSuppression)"
                )


def _noise(model: str, group: Batch, reported: Batch) -> dict[str, np.ndarray]:
    """What FP32 rounds off each FP32 output, measured with the same graph in FP64."""

    def exact(positions: list[int]) -> dict[str, np.ndarray]:
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(in_double(model))
        rows = list(single_rows(group))
        outputs = [evaluator.run(None, to_feed(doubled(rows[position]))) for position in positions]
        return joined([_named(evaluator.output_names, values) for values in outputs])

    return noise_of_fp32(reported, exact, EXACT_ROWS)


def in_double(model: str) -> object:
    """The graph with FP64 wherever it has FP32, for onnx's evaluator, which checks no types."""
    import onnx
    from onnx import TensorProto, numpy_helper

    def widen(tensor: TensorProto) -> None:
        if tensor.data_type == TensorProto.FLOAT:
            numbers = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(numbers, tensor.name))

    def widen_nodes(nodes: Any) -> None:
        for node in nodes:
            for attribute in node.attribute:
                widen(attribute.t)
                if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                    attribute.i = TensorProto.DOUBLE
                for inner in (attribute.g, *attribute.graphs):
                    widen_graph(inner)

    def widen_graph(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            widen(tensor)
        for tensor_info in (*graph.input, *graph.output):
            if tensor_info.type.tensor_type.elem_type == TensorProto.FLOAT:
                tensor_info.type.tensor_type.elem_type = TensorProto.DOUBLE
        widen_nodes(graph.node)

    loaded = onnx.load(model)
    widen_graph(loaded.graph)
    for function in loaded.functions:
        widen_nodes(function.node)
    return loaded


def _require_stateless(
    model: str, executor_name: str, groups: Sequence[Batch], reported: Sequence[Batch]
) -> None:
    """Run some rows again with a fresh executor and in reverse, and end the process where the
    outputs depend on either."""
    executor = _evaluated(model) if executor_name == REFERENCE else _unoptimised(model)
    for group, outputs in zip(groups, reported, strict=True):
        rows = list(single_rows(group))
        labels = [f"sample {row}" for row in range(len(rows))]
        again = joined([executor(rows[position]) for position in repeat_positions(len(rows))])
        for name, values in outputs.items():
            require_same_again(name, values, again[name], labels)


def _evaluated(model: str) -> Executor:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(model)
    return lambda row: _named(evaluator.output_names, evaluator.run(None, to_feed(row)))


def _reference(model: str, group: Batch) -> tuple[Executor | None, str]:
    """onnx's evaluator, if it computes the first row in time; else None and the reason."""
    first = next(single_rows(group))
    miscomputed = _miscomputed_operators(model)
    if miscomputed:
        return None, f"none ({miscomputed})"
    try:
        executor = _evaluated(model)
        started = time.monotonic()
        executor(first)
    except Exception as error:  # it may raise any Python error
        return None, f"none ({error})"
    if time.monotonic() - started > PATIENCE_S:
        return None, "none (too slow)"
    return executor, REFERENCE


def _miscomputed_operators(model: str) -> str:
    """The operators in the graph that onnx's evaluator computes against onnx's specification."""
    import onnx

    operators = {node.op_type for node in onnx.load(model, load_external_data=False).graph.node}
    return ", ".join(sorted(operators & MISCOMPUTED))


def _unoptimised(model: str) -> Executor:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.add_session_config_entry(NO_SPINNING, "0")
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_outputs()]
    return lambda row: _named(names, session.run(names, to_feed(row)))


def _named(names: Sequence[str], values: Any) -> dict[str, np.ndarray]:
    return {
        str(name): from_runtime(np.asarray(value))
        for name, value in zip(names, values, strict=True)
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
