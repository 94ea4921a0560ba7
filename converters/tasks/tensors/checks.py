"""Prove a graph of plain tensors against the original."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters.export.tensor_info import TensorInfo
from converters.proof.checks import Check, at_least, at_most, worst_difference
from converters.proof.closeness import (
    Closeness,
    beyond_noise,
    closeness,
    decided,
    same_best,
    spread_of,
    worst_of,
)
from converters.proof.closeness import same_decision as same_largest
from converters.proof.parity import lowest_cosine, same_decision, score_spread_checks
from converters.proof.reference import Reference
from converters.proof.relative import largest_relative, relative_checks
from converters.proof.runner import OpenRunner, onnx_runner
from converters.proof.self_test import answers_self_test
from converters.proof.tolerance import Tolerance
from converters.sources.batch_files import unpack_batches
from converters.sources.tensor_source import Batch, to_feed

BATCH_SIZES = (1, 2, 32)


class TensorGraph:
    """The engine, opened by ``runner``. ``metadata`` is the task's."""

    def __init__(
        self, engine: Path, metadata: Mapping[str, Any], runner: OpenRunner = onnx_runner
    ) -> None:
        self._session = runner(engine)
        self.outputs = [TensorInfo.from_metadata(output) for output in metadata["outputs"]]

    def run(self, group: Batch) -> dict[str, np.ndarray]:
        """The outputs for all rows of a group at once."""
        names = [tensor.name for tensor in self.outputs]
        outputs = self._session.run(names, to_feed(group))
        return {name: from_runtime(values) for name, values in zip(names, outputs, strict=True)}

    def alone(self, group: Batch) -> dict[str, np.ndarray]:
        """The outputs for all rows of a group, one row at a time."""
        return joined([self.run(row) for row in single_rows(group)])


def from_runtime(values: np.ndarray) -> np.ndarray:
    """An output of ONNX Runtime, object arrays turned into NumPy's Unicode."""
    if values.dtype != object:
        return values
    texts = [text.decode() if isinstance(text, bytes) else str(text) for text in values.flat]
    return np.array(texts, dtype=np.str_).reshape(values.shape)


def single_rows(group: Batch, size: int = 1) -> Iterator[dict[str, np.ndarray]]:
    """The group in batches of ``size`` rows."""
    rows = len(next(iter(group.values())))
    for start in range(0, rows, size):
        yield {name: values[start : start + size] for name, values in group.items()}


def doubled(group: Batch) -> dict[str, np.ndarray]:
    """The group with FP64 instead of FP32."""
    return {
        name: values.astype(np.float64) if values.dtype == np.float32 else values
        for name, values in group.items()
    }


def joined(batches: Sequence[Batch]) -> dict[str, np.ndarray]:
    """Concatenate batches; ValueError when their rows have different shapes."""
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def graph_checks(graph: TensorGraph, reference: Reference) -> list[Check]:
    """All checks of the graph, for each group of rows."""
    executor, checks = str(reference.outputs["executor"]), []
    groups = reference_batches(reference)
    for group, original, noise in groups:
        note = shape_note(group, len(groups))
        title = f"parity with {executor}{note}"
        alone, together = graph.alone(group), graph.run(group)
        checks += [
            *parity(title, alone, original, noise, reference),
            *_self_test(title, note, original, noise, reference),
            *invariance("batch invariance", together, alone, reference.tolerance.invariance, noise),
            *invariance("determinism", graph.run(group), together, 0.0),
            _dynamic_batch(graph, group),
        ]
    return checks


def parity_checks(graph: TensorGraph, reference: Reference) -> list[Check]:
    """Only the checks of parity."""
    checks: list[Check] = []
    for group, original, noise in reference_batches(reference):
        checks += parity("parity", graph.alone(group), original, noise, reference)
    return checks


def reference_batches(reference: Reference) -> list[tuple[Batch, Batch, Batch]]:
    """For each group of rows: the inputs, the original's outputs, and what FP32 rounds off these
    (``ReferenceOutputs.noise``)."""
    inputs, outputs = (unpack_batches(reference.outputs, part) for part in ("in", "out"))
    noise = unpack_batches(reference.outputs, "noise") or [{} for _ in outputs]
    return list(zip(inputs, outputs, noise, strict=True))


def _self_test(
    title: str, note: str, original: Batch, noise: Batch, reference: Reference
) -> list[Check]:
    """Checks that parity sees faults planted in each floating-point output, one at a time."""
    return [
        check
        for name, expected in original.items()
        if expected.dtype.kind == "f" and expected.size
        for check in answers_self_test(
            lambda faulty, name=name: parity(  # type: ignore[misc]
                title, {name: faulty}, {name: original[name]}, noise, reference
            ),
            expected,
            function_of(expected),
            f"{name}{note}",
        )
    ]


def outputs_closeness(graph: TensorGraph, reference: Reference) -> Closeness:
    """Closeness of the outputs, one row at a time and relative to how much the original's numbers
    vary: the worst of all floating-point outputs. Agreement is the share of rows with the same
    largest element."""
    results = []
    originals = unpack_batches(reference.outputs, "out")
    for group, original in zip(unpack_batches(reference.outputs, "in"), originals, strict=True):
        alone = graph.alone(group)
        for name, expected in original.items():
            if expected.dtype.kind == "f" and expected.size:
                actual = alone[name].reshape(len(expected), -1)
                target = expected.reshape(len(expected), -1)
                agreement = same_largest(actual, target) if target.shape[1] > 1 else 1.0
                results.append(closeness(actual, target, agreement, relative=True))
    # Without a float there is nothing that rounding could change.
    return worst_of(results) if results else Closeness(0.0, 0.0, 1.0, 1.0, 1.0)


def shape_note(group: Batch, groups: int) -> str:
    """`` at NAME[shape]``, to tell groups apart; "" where there is only one."""
    if groups == 1:
        return ""
    return " at " + ", ".join(f"{name}{list(values.shape[1:])}" for name, values in group.items())


def parity(
    title: str, actual: Batch, original: Batch, noise: Batch, reference: Reference
) -> list[Check]:
    """Compare every output with the original's, row by row."""
    checks: list[Check] = []
    for name, expected in original.items():
        values = beyond_noise(actual[name], expected, noise.get(name))
        labels = row_labels(name, len(expected))
        if expected.dtype.kind != "f" or values.shape != expected.shape or not expected.size:
            shares = reference.tolerance.shares
            checks += relative_checks(f"{title}: {name}", values, expected, shares, labels)
            continue
        flat = values.reshape(len(values), -1), expected.reshape(len(expected), -1)
        checks += score_spread_checks(
            f"{title}: {name}", *flat, function_of(expected), reference.tolerance.shares, labels
        )
        checks += _cosine(name, *flat, reference)
        checks += _decisions(name, *flat, reference, labels)
    return checks


def function_of(original: np.ndarray) -> str:
    """What function a floating-point output [n, ...] seems to come from: ``softmax`` (each row
    [classes] adds up to 1), ``sigmoid`` (all numbers are between 0 and 1) or ``none``."""
    inside = original.min() >= 0 and original.max() <= 1
    if not inside or np.isin(original, (0, 1)).all():
        return "none"
    if original.ndim == 2 and original.shape[1] > 1:
        sums = original.astype(np.float64).sum(axis=1)
        if (np.abs(sums - 1) < 1e-3).all():
            return "softmax"
    return "sigmoid"


def _decisions(
    name: str, actual: np.ndarray, expected: np.ndarray, reference: Reference, labels: Sequence[str]
) -> list[Check]:
    """The same largest element of an output [n, classes], and the same side of 0.5 for a single
    probability, where the original's lead is clear; probabilities also within a classifier's
    tolerance."""
    tolerance, checks = reference.tolerance, []
    function = function_of(expected)
    if function != "none":
        title = f"probabilities {name}: largest difference"
        checks.append(worst_difference(title, actual, expected, tolerance.difference, labels))
    if function == "sigmoid" and expected.shape[1] == 1:
        pair, expected_pair = (
            np.concatenate([1 - scores, scores], axis=1) for scores in (actual, expected)
        )
        title = f"task: same side of 0.5 of {name}"
        checks.append(same_decision(title, pair, expected_pair, tolerance, labels))
    if expected.shape[1] > 1 and len(expected.shape) == 2 and _rank(reference, name) == 1:
        checks.append(same_largest_check(name, actual, expected, tolerance, labels))
    return checks


def _rank(reference: Reference, name: str) -> int:
    return next(
        len(output["dims"]) for output in reference.metadata["outputs"] if output["name"] == name
    )


def same_largest_check(
    name: str, actual: np.ndarray, expected: np.ndarray, tolerance: Tolerance, labels: Sequence[str]
) -> Check:
    """The share of rows with the original's largest element, of those where it leads clearly.
    Logits have no scale of their own: a lead is clear beyond twice the share of their spread that
    may be error."""
    spread = spread_of(expected)
    margin = 2 * tolerance.shares.lost * float(np.sqrt((spread.size**2).mean()))
    clear = decided(expected, margin + 2 * float(spread.floor.max()))
    flipped = ~same_best(actual, expected) & clear
    worst = labels[int(flipped.argmax())] if flipped.any() else f"{int(clear.sum())} are clear"
    share = 1 - flipped.sum() / max(1, clear.sum())
    return at_least(f"task: same largest of {name}", share, tolerance.agreement, worst)


def _cosine(
    name: str, actual: np.ndarray, expected: np.ndarray, reference: Reference
) -> list[Check]:
    """The lowest cosine of the rows that have a direction: those longer than ten times the allowed
    difference. A vector near zero, and a single number, have none."""
    typical = np.sqrt((spread_of(expected).size ** 2).mean())
    noise = 10 * reference.tolerance.shares.lost * typical * np.sqrt(expected.shape[1])
    long = np.flatnonzero(np.linalg.norm(expected.astype(np.float64), axis=1) > noise)
    if expected.shape[1] < 2 or not len(long):
        return []
    labels = [f"{name!r} of sample {row}" for row in long]
    limit = reference.tolerance.cosine
    return [lowest_cosine(f"{name}: lowest cosine", actual[long], expected[long], limit, labels)]


def invariance(
    title: str, actual: Batch, expected: Batch, limit: float, noise: Batch | None = None
) -> list[Check]:
    """Two runs of the same rows: floats within ``limit`` beyond their ``noise``, all else equal."""
    checks: list[Check] = []
    for name, values in expected.items():
        labels = row_labels(name, len(values))
        if values.dtype.kind == "f":
            denoised = beyond_noise(actual[name], values, (noise or {}).get(name))
            checks.append(largest_relative(f"{title}: {name}", denoised, values, limit, labels))
        else:
            checks += relative_checks(f"{title}: {name}", actual[name], values, (0, 0), labels)
    return checks


def row_labels(name: str, rows: int) -> list[str]:
    """The names of an output's rows in checks."""
    return [f"{name!r} of sample {row}" for row in range(rows)]


def _dynamic_batch(graph: TensorGraph, group: Batch) -> Check:
    failures, rows = 0, len(next(iter(group.values())))
    for size in BATCH_SIZES:
        positions = np.arange(size) % rows
        try:
            outputs = graph.run({name: values[positions] for name, values in group.items()})
        except Exception:  # ONNX Runtime's errors share no base class
            failures += 1
            continue
        failures += any(len(values) != size for values in outputs.values())
    sizes = ", ".join(map(str, BATCH_SIZES))
    return at_most(f"dynamic batch {sizes}: sizes that went wrong", failures, 0)
