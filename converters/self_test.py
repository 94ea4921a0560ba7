"""Whether a proof could fail: ten faults planted into what it is asked about, each to be seen.

A check that passes says nothing where it would have passed for a broken model too: where answers
are so alike, or a precision's limits so wide, that nobody could tell. So every proof is asked about
answers that are surely wrong: always the same, turned round, scaled, zero, another sample's, two
labels swapped, all labels one further; and, when a graph is converted, about graphs that are: one
layer skipped, calibrated on zeros, the mask dropped. A precision for which one of these passes is
not offered for the model.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from converters.attempt import attempted
from converters.broken_graphs import broken_graphs
from converters.closeness import departure, spread_of
from converters.layers import Layers
from converters.proof import Check, at_most
from converters.tolerance import SHARES, tolerance

if TYPE_CHECKING:
    from converters.task import Reference, Task

Checks = Callable[[np.ndarray], list[Check]]
NAME = "self-test: planted faults that would pass"
# Graphs with faults are asked about so many samples.
FEW = 24
FEW_LAYERS = 3


def answers_self_test(
    checks: Checks, original: np.ndarray, function: str = "none", what: str = ""
) -> list[Check]:
    """One check: how many faults planted into the answers FP [n, ...] themselves pass ``checks``.

    ``function`` made the answers (``softmax``, ``sigmoid``: scores [n, labels]; ``none``): a fault
    is planted into what it was made of, so that what comes is still a distribution. A fault that
    leaves the answers as they were is none, and is named. Constant originals are said to be so.
    """
    name = f"{NAME}{f', {what}' if what else ''}"
    passed, seen, nothing = [], [], []
    for fault, answers in planted(original, function):
        if _is_same(answers, original):
            nothing.append(fault)
        elif all(check.passed for check in checks(answers)):
            passed.append(fault)
        else:
            seen.append(fault)
    return [at_most(name, len(passed), 0, _told(passed, seen, nothing))]


def _told(passed: Sequence[str], seen: Sequence[str], nothing: Sequence[str]) -> str:
    said = f"would pass: {', '.join(passed)}: these limits cannot tell. " if passed else ""
    said += f"seen: {', '.join(seen)}" if seen else "seen: none"
    return said + (f"; would change nothing here: {', '.join(nothing)}" if nothing else "")


def is_constant(original: np.ndarray) -> bool:
    """Whether the original answers the same to each of these samples."""
    flat = original.reshape(len(original), -1).astype(np.float64)
    spread = spread_of(original)
    apart = np.abs(flat - np.median(flat, axis=0)).max(axis=0, initial=0.0)
    return bool((apart <= spread.floor).all())


def planted(original: np.ndarray, function: str) -> Iterator[tuple[str, np.ndarray]]:
    """The faults of answers [n, ...] by name, each with the answers that it gives."""
    plain = _opened(original, function)
    middle = np.median(plain, axis=0, keepdims=True)
    for name, answers in (
        ("constant", np.broadcast_to(middle, plain.shape)),
        ("negated", -plain),
        ("scaled", 2 * plain),
        ("zeroed", np.zeros_like(plain)),
        ("shifted", np.roll(plain, 1, axis=0)),
        ("swapped", _swapped(plain)),
        ("labels rotated", _rotated(plain)),
    ):
        yield name, _closed(np.array(answers), function).astype(original.dtype)


def _swapped(plain: np.ndarray) -> np.ndarray:
    """Two elements of each answer change places; of a single number, two samples' do."""
    answers = plain.copy()
    flat = answers.reshape(len(answers), -1)
    if flat.shape[1] < 2:
        order = np.argsort(flat[:, 0])
        flat[order[[0, -1]]] = flat[order[[-1, 0]]]
        return answers
    apart = np.abs(flat - flat[:, :1]).mean(axis=0)
    other = int(apart.argmax())
    flat[:, [0, other]] = flat[:, [other, 0]]
    return answers


def _rotated(plain: np.ndarray) -> np.ndarray:
    flat = plain.reshape(len(plain), -1)
    return np.roll(flat, 1, axis=1).reshape(plain.shape)


def _opened(original: np.ndarray, function: str) -> np.ndarray:
    numbers = original.astype(np.float64)
    if function == "softmax":
        return np.asarray(np.log(np.maximum(numbers, 1e-30)))
    if function == "sigmoid":
        inside = np.clip(numbers, 1e-12, 1 - 1e-12)
        return np.asarray(np.log(inside / (1 - inside)))
    return numbers


def _closed(plain: np.ndarray, function: str) -> np.ndarray:
    if function == "softmax":
        powers = np.exp(plain - plain.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
    if function == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-np.clip(plain, -700, 700))))
    return plain


def _is_same(answers: np.ndarray, original: np.ndarray) -> bool:
    """Whether nobody could tell even at FP32."""
    found, exact = departure(answers, original), SHARES["fp32"][0]
    return found.largest <= exact.largest and found.lost <= exact.lost


def graph_self_test(task: "Task", reference: "Reference", precision: str) -> Check:
    """How many faults planted into the graph itself pass within the limits of ``precision``.

    The faults are planted into the FP32 graph of ``reference`` and asked about a few samples: what
    the
    limits let through is the same for each way of writing it. Of each kind there are several, in
    other places of the graph, and all must be seen.
    """
    few = task.few(reference, FEW)
    exact = replace(few, tolerance=tolerance(task.name, "fp32"))
    source = reference.folder / "model.onnx"
    layers = Layers(source, list(islice(task.layer_feeds(few), FEW_LAYERS)))
    passed, seen, nothing = [], [], []
    with tempfile.TemporaryDirectory(prefix="tidegate-self-test-") as work:
        for fault, files in broken_graphs(task, few, source, precision, Path(work)):
            missed = [file for file in files if not _is_seen(task, few, file, layers)]
            # What even FP32 cannot tell is no fault.
            if any(_is_seen(task, exact, file, layers) for file in missed):
                passed.append(fault)
            elif len(missed) < len(files):
                seen.append(fault)
            else:
                nothing.append(fault)
    return at_most(f"{NAME}, graphs", len(passed), 0, _told(passed, seen, nothing))


def compared_layers(task: "Task", engine: Path, reference: "Reference") -> list[Check]:
    """Each layer of ``engine`` against the FP32 graph of the case, within
    ``reference.tolerance``."""
    layers = Layers(reference.folder / "model.onnx", list(task.layer_feeds(reference)))
    return layers.checks(engine, reference.tolerance.layers)


def _is_seen(task: "Task", reference: "Reference", engine: Path, layers: Layers) -> bool:
    """By the layers, by the answers, or by what padding changes: in the order of what they cost."""
    return any(
        not check.passed
        for checks in (
            lambda: layers.checks(engine, reference.tolerance.layers),
            lambda: task.parity_checks(engine, reference),
            lambda: task.mask_checks(engine, reference),
        )
        for check in attempted("planted", checks)
    )
