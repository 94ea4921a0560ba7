"""Whether a proof could fail at all: faults are planted, and the proof must detect each of them.

A passing check proves nothing if it would also pass for a broken model: if the answers are so
similar, or the limits of a precision so wide, that a fault makes no difference. So every proof also
judges answers that are certainly wrong: constant, negated, scaled, zero, another sample's, two
labels swapped, all labels shifted by one; and, when a graph is converted, wrong graphs: a skipped
layer, calibration on zeros, a dropped mask. A precision that lets one of these pass is refused for
the model.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from converters.proof.attempt import attempted
from converters.proof.broken_graphs import broken_graphs
from converters.proof.checks import Check, at_most
from converters.proof.closeness import departure, spread_of
from converters.proof.layers import Layers
from converters.proof.reference import ProvedTask, Reference
from converters.proof.tolerance import SHARES

Checks = Callable[[np.ndarray], list[Check]]
NAME = "self-test: planted faults that would pass"
# Graphs with faults are run on this many samples.
FEW = 24
FEW_LAYERS = 3
# One sample in so many, from each end.
SWAPPED = 8


def answers_self_test(
    checks: Checks, original: np.ndarray, function: str = "none", what: str = ""
) -> list[Check]:
    """One check: how many faults planted into the answers FP [n, ...] themselves pass ``checks``.

    ``function`` made the answers (``softmax``, ``sigmoid``: scores [n, labels]; ``none``): faults
    are planted into its inputs, so that the result is still a distribution. A fault that does not
    change the answers does not count, and the check names it. ``what`` is added to the check's
    name.
    """
    name = f"{NAME}{f', {what}' if what else ''}"
    passed, detected, unchanged = [], [], []
    for fault, outputs in faulty_answers(original, function):
        if _is_same(outputs, original):
            unchanged.append(fault)
        elif all(check.passed for check in checks(outputs)):
            passed.append(fault)
        else:
            detected.append(fault)
    return [at_most(name, len(passed), 0, _summary(passed, detected, unchanged))]


def _summary(passed: Sequence[str], detected: Sequence[str], unchanged: Sequence[str]) -> str:
    summary = ""
    if passed:
        summary += f"would pass: {', '.join(passed)}: these limits cannot detect them. "
    summary += f"detected: {', '.join(detected) or 'none'}"
    if unchanged:
        summary += f"; would change nothing here: {', '.join(unchanged)}"
    return summary


def is_constant(original: np.ndarray) -> bool:
    """Whether the original gives the same answer to each of these samples."""
    outputs = original.reshape(len(original), -1).astype(np.float64)
    distances = np.abs(outputs - np.median(outputs, axis=0)).max(axis=0, initial=0.0)
    return bool((distances <= spread_of(original).floor).all())


def faulty_answers(original: np.ndarray, function: str) -> Iterator[tuple[str, np.ndarray]]:
    """The name of each fault, and what it makes of the answers [n, ...]."""
    plain = _inverse(original, function)
    middle = np.median(plain, axis=0, keepdims=True)
    for name, faulty in (
        ("constant", np.broadcast_to(middle, plain.shape)),
        ("negated", -plain),
        ("scaled", 2 * plain),
        ("zeroed", np.zeros_like(plain)),
        ("shifted", np.roll(plain, 1, axis=0)),
        ("swapped", _swapped(plain)),
        ("labels rotated", _rotated(plain)),
    ):
        yield name, _applied(np.array(faulty), function).astype(original.dtype)


def _swapped(plain: np.ndarray) -> np.ndarray:
    """Two elements of each answer swapped; for answers of one number, those of the samples with the
    highest and the lowest: a share of the samples, because two of a thousand are no fault that a
    limit on all answers could detect."""
    swapped = plain.copy()
    flat = swapped.reshape(len(swapped), -1)
    if flat.shape[1] < 2:
        order = np.argsort(flat[:, 0], kind="stable")
        ends = max(1, len(order) // SWAPPED)
        lowest, highest = order[:ends], order[::-1][:ends]
        flat[[*lowest, *highest]] = flat[[*highest, *lowest]]
        return swapped
    distances = np.abs(flat - flat[:, :1]).mean(axis=0)
    farthest = int(distances.argmax())
    flat[:, [0, farthest]] = flat[:, [farthest, 0]]
    return swapped


def _rotated(plain: np.ndarray) -> np.ndarray:
    flat = plain.reshape(len(plain), -1)
    return np.roll(flat, 1, axis=1).reshape(plain.shape)


def _inverse(original: np.ndarray, function: str) -> np.ndarray:
    """The inputs FP64 of ``function``, whose outputs these are."""
    numbers = original.astype(np.float64)
    if function == "softmax":
        return np.asarray(np.log(np.maximum(numbers, 1e-30)))
    if function == "sigmoid":
        inside = np.clip(numbers, 1e-12, 1 - 1e-12)
        return np.asarray(np.log(inside / (1 - inside)))
    return numbers


def _applied(plain: np.ndarray, function: str) -> np.ndarray:
    if function == "softmax":
        powers = np.exp(plain - plain.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
    if function == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-np.clip(plain, -700, 700))))
    return plain


def _is_same(outputs: np.ndarray, original: np.ndarray) -> bool:
    """Whether the answers are equal even within the limits of FP32."""
    error, limits = departure(outputs, original), SHARES["fp32"][0]
    return error.largest <= limits.largest and error.lost <= limits.lost


def graph_self_test(task: ProvedTask, reference: Reference, precision: str) -> Check:
    """How many faults planted into the graph itself pass within the limits of ``precision``.

    The faults are planted into the FP32 graph of ``reference``, which is run on a few samples: what
    the limits let through does not depend on how the precision is written. Each kind of fault is
    planted in several positions of the graph, and all must be detected.
    """
    few = task.few(reference, FEW)
    exact = replace(few, tolerance=task.tolerance("fp32"))
    source = reference.folder / "model.onnx"
    layers = Layers(source, list(islice(task.layer_feeds(few), FEW_LAYERS)))
    passed, detected, unchanged = [], [], []
    with tempfile.TemporaryDirectory(prefix="tidegate-self-test-") as work:
        for fault, files in broken_graphs(task, few, source, precision, Path(work)):
            missed = [file for file in files if not _is_detected(task, few, file, layers)]
            # A difference that even FP32's limits do not show is not a fault.
            if any(_is_detected(task, exact, file, layers) for file in missed):
                passed.append(fault)
            elif len(missed) < len(files):
                detected.append(fault)
            else:
                unchanged.append(fault)
    return at_most(f"{NAME}, graphs", len(passed), 0, _summary(passed, detected, unchanged))


def compared_layers(
    task: ProvedTask, engine: Path, reference: Reference
) -> tuple[list[Check], str]:
    """Each layer of ``engine`` against the FP32 graph of ``reference``, within its tolerance; if
    they cannot be compared, no check and the reason."""
    layers = Layers(reference.folder / "model.onnx", list(task.layer_feeds(reference)))
    checks = attempted("layer by layer", lambda: layers.checks(engine, reference.tolerance.layers))
    return checks, layers.not_compared


def _is_detected(task: ProvedTask, reference: Reference, engine: Path, layers: Layers) -> bool:
    """Whether the layers, the answers or the mask show a fault; the cheapest checks come first."""
    return any(
        not check.passed
        for checks in (
            lambda: layers.checks(engine, reference.tolerance.layers),
            lambda: task.parity_checks(engine, reference),
            lambda: task.mask_checks(engine, reference),
        )
        for check in attempted("planted", checks)
    )
