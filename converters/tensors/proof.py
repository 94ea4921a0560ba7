"""Prove a graph of plain tensors against the original."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters.closeness import (
    Closeness,
    beyond_noise,
    closeness,
    decided,
    same_best,
    spread_of,
    worst_of,
)
from converters.closeness import same_decision as same_largest
from converters.parity import lowest_cosine, same_decision, score_spread_checks
from converters.proof import Check, at_least, at_most, worst_difference
from converters.relative import largest_relative, relative_checks
from converters.runner import OpenRunner, onnx_runner
from converters.self_test import answers_self_test
from converters.sources.tensor_source import Group, TensorInfo
from converters.task import Reference
from converters.tensors.group_files import unpack_groups
from converters.tolerance import Tolerance

BATCH_SIZES = (1, 2, 32)


class TensorGraph:
    """The engine, opened by ``runner``. ``metadata`` are the task's."""

    def __init__(
        self, engine: Path, metadata: Mapping[str, Any], runner: OpenRunner = onnx_runner
    ) -> None:
        self._session = runner(engine)
        self.outputs = [TensorInfo.from_facts(each) for each in metadata["outputs"]]

    def run(self, group: Group) -> dict[str, np.ndarray]:
        """The outputs for all rows of a group at once."""
        names = [port.name for port in self.outputs]
        answers = self._session.run(names, as_fed(group))
        return {name: as_kept(values) for name, values in zip(names, answers, strict=True)}

    def alone(self, group: Group) -> dict[str, np.ndarray]:
        """The same, one row at a time."""
        return joined([self.run(row) for row in single_rows(group)])


def as_fed(group: Group) -> dict[str, np.ndarray]:
    """As ONNX Runtime takes it: texts are objects."""
    return {
        name: values.astype(object) if values.dtype.kind == "U" else values
        for name, values in group.items()
    }


def as_kept(values: np.ndarray) -> np.ndarray:
    """Without objects: texts as NumPy has them."""
    if values.dtype != object:
        return values
    texts = [each.decode() if isinstance(each, bytes) else str(each) for each in values.flat]
    return np.array(texts, dtype=np.str_).reshape(values.shape)


def single_rows(group: Group, size: int = 1) -> Iterator[dict[str, np.ndarray]]:
    """The group in batches of ``size`` rows."""
    rows = len(next(iter(group.values())))
    for start in range(0, rows, size):
        yield {name: values[start : start + size] for name, values in group.items()}


def doubled(group: Group) -> dict[str, np.ndarray]:
    """The group with FP64 for FP32."""
    return {
        name: values.astype(np.float64) if values.dtype == np.float32 else values
        for name, values in group.items()
    }


def joined(answers: Sequence[Group]) -> dict[str, np.ndarray]:
    """Batches put together again; ValueError when their rows have unlike shapes."""
    return {name: np.concatenate([each[name] for each in answers]) for name in answers[0]}


def graph_checks(graph: TensorGraph, reference: Reference) -> list[Check]:
    """Every check of the graph, for each group of rows."""
    oracle, checks = str(reference.answers["oracle"]), []
    parts = case_groups(reference)
    for group, original, noise in parts:
        where = f"parity with {oracle}{shape_note(group, len(parts))}"
        alone, together = graph.alone(group), graph.run(group)
        checks += [
            *parity(where, alone, original, noise, reference),
            *_self_test(where, original, noise, reference),
            *invariance("batch invariance", together, alone, reference.tolerance.invariance, noise),
            *invariance("determinism", graph.run(group), together, 0.0),
            _dynamic_batch(graph, group),
        ]
    return checks


def parity_checks(graph: TensorGraph, reference: Reference) -> list[Check]:
    """The checks of parity alone."""
    checks: list[Check] = []
    for group, original, noise in case_groups(reference):
        checks += parity("parity", graph.alone(group), original, noise, reference)
    return checks


def case_groups(reference: Reference) -> list[tuple[Group, Group, Group]]:
    """Of each group of rows the inputs, the original's outputs, and what FP32 rounds off of them
    (``ReferenceOutputs.noise``)."""
    given, reported = (unpack_groups(reference.answers, part) for part in ("in", "out"))
    noise = unpack_groups(reference.answers, "noise") or [{} for _ in reported]
    return list(zip(given, reported, noise, strict=True))


def _self_test(where: str, original: Group, noise: Group, reference: Reference) -> list[Check]:
    """Faults planted into each output of floats, and into it alone."""
    return [
        check
        for name, wanted in original.items()
        if wanted.dtype.kind == "f" and wanted.size
        for check in answers_self_test(
            lambda answers, name=name: parity(  # type: ignore[misc]
                where, {name: answers}, {name: original[name]}, noise, reference
            ),
            wanted,
            function_of(wanted),
            f"{name}{where.partition(' at ')[1]}{where.partition(' at ')[2]}",
        )
    ]


def outputs_closeness(graph: TensorGraph, reference: Reference) -> Closeness:
    """Every row alone, relative to the original's numbers; the worst of all FP outputs. Agreement
    is the same largest element of outputs [n, classes], over all rows."""
    views = []
    originals = unpack_groups(reference.answers, "out")
    for group, original in zip(unpack_groups(reference.answers, "in"), originals, strict=True):
        alone = graph.alone(group)
        for name, wanted in original.items():
            if wanted.dtype.kind == "f" and wanted.size:
                got, theirs = (each.reshape(len(wanted), -1) for each in (alone[name], wanted))
                same = same_largest(got, theirs) if theirs.shape[1] > 1 else 1.0
                views.append(closeness(got, theirs, same, relative=True))
    # Without a float there is nothing that rounding could change.
    return worst_of(views) if views else Closeness(0.0, 0.0, 1.0, 1.0, 1.0)


def shape_note(group: Group, groups: int) -> str:
    """Which group it is, where there are several."""
    if groups == 1:
        return ""
    return " at " + ", ".join(f"{name}{list(values.shape[1:])}" for name, values in group.items())


def parity(
    where: str, got: Group, original: Group, noise: Group, reference: Reference
) -> list[Check]:
    """Every output against the original's, row by row."""
    checks: list[Check] = []
    for name, wanted in original.items():
        mine = beyond_noise(got[name], wanted, noise.get(name))
        labels = row_labels(name, len(wanted))
        if wanted.dtype.kind != "f" or mine.shape != wanted.shape or not wanted.size:
            shares = reference.tolerance.shares
            checks += relative_checks(f"{where}: {name}", mine, wanted, shares, labels)
            continue
        flat = mine.reshape(len(mine), -1), wanted.reshape(len(wanted), -1)
        title = f"{where}: {name}"
        checks += score_spread_checks(
            title, *flat, function_of(wanted), reference.tolerance.shares, labels
        )
        checks += _cosine(name, *flat, reference)
        checks += _decisions(name, *flat, reference, labels)
    return checks


def function_of(original: np.ndarray) -> str:
    """What an output FP [n, ...] is by its numbers: ``softmax`` (each row [classes] adds up to 1),
    ``sigmoid`` (all lie between 0 and 1) or ``none``."""
    inside = original.min() >= 0 and original.max() <= 1
    if not inside or np.isin(original, (0, 1)).all():
        return "none"
    if original.ndim == 2 and original.shape[1] > 1:
        sums = original.astype(np.float64).sum(axis=1)
        if (np.abs(sums - 1) < 1e-3).all():
            return "softmax"
    return "sigmoid"


def _decisions(
    name: str, got: np.ndarray, wanted: np.ndarray, reference: Reference, labels: Sequence[str]
) -> list[Check]:
    """The same largest element of an output [n, classes], and the same side of 0.5 of one that is a
    probability, where the original's lead is clear; probabilities also within the limits that a
    classifier's have."""
    allowed, checks = reference.tolerance, []
    function = function_of(wanted)
    if function != "none":
        title = f"probabilities {name}: largest difference"
        checks.append(worst_difference(title, got, wanted, allowed.difference, labels))
    if function == "sigmoid" and wanted.shape[1] == 1:
        mine, theirs = (np.concatenate([1 - each, each], axis=1) for each in (got, wanted))
        title = f"task: same side of 0.5 of {name}"
        checks.append(same_decision(title, mine, theirs, allowed, labels))
    if wanted.shape[1] > 1 and len(wanted.shape) == 2 and _rank(reference, name) == 1:
        checks.append(same_largest_check(name, got, wanted, allowed, labels))
    return checks


def _rank(reference: Reference, name: str) -> int:
    return next(len(each["dims"]) for each in reference.metadata["outputs"] if each["name"] == name)


def same_largest_check(
    name: str, got: np.ndarray, wanted: np.ndarray, allowed: Tolerance, labels: Sequence[str]
) -> Check:
    """Logits have no scale of their own: a lead is clear beyond twice the share of their spread
    that may be error."""
    spread = spread_of(wanted)
    margin = 2 * allowed.shares.lost * float(np.sqrt((spread.size**2).mean()))
    clear = decided(wanted, margin + 2 * float(spread.floor.max()))
    flipped = ~same_best(got, wanted) & clear
    worst = labels[int(flipped.argmax())] if flipped.any() else f"{int(clear.sum())} are clear"
    share = 1 - flipped.sum() / max(1, clear.sum())
    return at_least(f"task: same largest of {name}", share, allowed.agreement, worst)


def _cosine(name: str, got: np.ndarray, wanted: np.ndarray, reference: Reference) -> list[Check]:
    """The lowest cosine of the rows that have a direction: those longer than what may differ, ten
    times over. A vector of almost nothing, and a single number, have none."""
    typical = np.sqrt((spread_of(wanted).size ** 2).mean())
    noise = 10 * reference.tolerance.shares.lost * typical * np.sqrt(wanted.shape[1])
    long = np.flatnonzero(np.linalg.norm(wanted.astype(np.float64), axis=1) > noise)
    if wanted.shape[1] < 2 or not len(long):
        return []
    labels = [f"{name!r} of sample {row}" for row in long]
    limit = reference.tolerance.cosine
    return [lowest_cosine(f"{name}: lowest cosine", got[long], wanted[long], limit, labels)]


def invariance(
    what: str, got: Group, wanted: Group, limit: float, noise: Group | None = None
) -> list[Check]:
    """Two runs of the same rows: floats within ``limit``, but for ``noise``; all else equal."""
    checks: list[Check] = []
    for name, first in wanted.items():
        labels = row_labels(name, len(first))
        if first.dtype.kind == "f":
            mine = beyond_noise(got[name], first, (noise or {}).get(name))
            checks.append(largest_relative(f"{what}: {name}", mine, first, limit, labels))
        else:
            checks += relative_checks(f"{what}: {name}", got[name], first, (0, 0), labels)
    return checks


def row_labels(name: str, rows: int) -> list[str]:
    """How a check names the rows of an output."""
    return [f"{name!r} of sample {row}" for row in range(rows)]


def _dynamic_batch(graph: TensorGraph, group: Group) -> Check:
    wrong, rows = 0, len(next(iter(group.values())))
    for size in BATCH_SIZES:
        positions = np.arange(size) % rows
        try:
            answers = graph.run({name: values[positions] for name, values in group.items()})
        except Exception:  # ONNX Runtime's errors share no base class
            wrong += 1
            continue
        wrong += any(len(values) != size for values in answers.values())
    sizes = ", ".join(map(str, BATCH_SIZES))
    return at_most(f"dynamic batch {sizes}: sizes that went wrong", wrong, 0)
