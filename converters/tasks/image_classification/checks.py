"""Prove an image classifier's graph against the original's logits for the same pixels.

Logits have no scale of their own: differences are measured against how much the original's logits
vary between the images, so that a graph that is 1 % off is caught however small its numbers are.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from converters.proof.checks import Check, at_most, worst_difference
from converters.proof.closeness import Closeness, beyond_noise, closeness, same_decision
from converters.proof.parity import spread_checks
from converters.proof.reference import Reference
from converters.proof.runner import OpenRunner, onnx_runner
from converters.proof.scores import FUNCTIONS, parity
from converters.proof.self_test import answers_self_test

BATCH_SIZES = (1, 2, 3, 16)
ROWS = 16
# A share of the logits' range, for each unit that a score may differ by.
LOGITS_PER_SCORE = 5
# Two correct FP32 runs differ by a few units in the last place of the largest logit (6e-8 each);
# differences below 1e-7 do not show in a score.
NOISE, LEAST = 2e-6, 1e-7


class Graph:
    """The converted graph; the checks report what its runner raises."""

    def __init__(self, engine: Path, runner: OpenRunner = onnx_runner) -> None:
        self._session = runner(engine)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Logits FP32 [n, labels] of pixels FP32 [n, 3, height, width], as one batch."""
        return np.asarray(self._session.run(None, {"pixels": pixels})[0])


def graph_checks(graph: Graph, reference: Reference) -> list[Check]:
    """All checks against the original's ``logits`` for its ``pixels``."""
    pixels, names = reference.outputs["pixels"], image_names(reference)
    try:
        logits = np.concatenate([graph(row[None]) for row in pixels])
    except Exception as error:  # ONNX Runtime's errors share no base class
        return [failed("the graph runs", error)]
    few = pixels[:ROWS]
    return [
        *_parity(logits, reference, names),
        *_self_test(reference, names),
        checked("batch invariance", lambda name: _batch_invariance(name, graph, logits, reference)),
        *(
            checked(f"batch of {rows}", _batch_of(rows, graph, logits, reference))
            for rows in BATCH_SIZES
        ),
        checked("extreme images: answers that are not finite", _extremes(graph, pixels)),
        checked(
            "determinism", lambda name: worst_difference(name, graph(few), graph(few), 0.0, names)
        ),
    ]


def parity_checks(graph: Graph, reference: Reference) -> list[Check]:
    """Only the checks of parity."""
    logits = np.concatenate([graph(row[None]) for row in reference.outputs["pixels"]])
    return _parity(logits, reference, image_names(reference))


def _parity(actual: np.ndarray, reference: Reference, names: Sequence[str]) -> list[Check]:
    expected = reference.outputs["logits"]
    limit = logit_limit(reference, reference.tolerance.difference)
    largest = worst_difference(
        "parity: largest difference of a logit", actual, expected, limit, names
    )
    if actual.shape != expected.shape:
        return [largest]
    actual = beyond_noise(actual, expected, reference.outputs.get("logits_noise"))
    spread = spread_checks(
        "parity: logit",
        _compared(actual, reference),
        _compared(expected, reference),
        reference.tolerance.shares,
        names,
    )
    return [largest, *spread, *_score_parity(actual, reference, names)]


def _compared(logits: np.ndarray, reference: Reference) -> np.ndarray:
    """Logits, minus their mean where the scores do not depend on it."""
    if reference.metadata["function"] != "softmax":
        return logits
    return np.asarray(logits.astype(np.float64) - logits.mean(axis=1, keepdims=True))


def _self_test(reference: Reference, names: Sequence[str]) -> list[Check]:
    return answers_self_test(
        lambda faulty: _parity(faulty, reference, names), reference.outputs["logits"]
    )


def scores_closeness(graph: Graph, reference: Reference) -> Closeness:
    """Closeness of the scores, one image at a time; agreement is the share of images with the same
    likeliest label."""
    logits = np.concatenate([graph(row[None]) for row in reference.outputs["pixels"]]).astype(
        np.float64
    )
    scores = FUNCTIONS[reference.metadata["function"]](logits)
    expected = reference.outputs["scores"]
    return closeness(scores, expected, same_decision(scores, expected))


def image_names(reference: Reference) -> list[str]:
    """The images' names, in the order of all other arrays of ``reference.outputs``."""
    return [str(name) for name in reference.outputs["names"]]


def logit_limit(reference: Reference, score: float) -> float:
    """How much a logit may differ where a score may differ by ``score``."""
    logits = reference.outputs["logits"].astype(np.float64)
    spread = np.abs(logits - logits.mean(axis=0)).max()
    return float(LOGITS_PER_SCORE * score * spread + NOISE * np.abs(logits).max() + LEAST)


def _score_parity(logits: np.ndarray, reference: Reference, names: Sequence[str]) -> list[Check]:
    if logits.shape != reference.outputs["scores"].shape:
        return []  # the check of the logits has failed already
    return parity(
        FUNCTIONS[reference.metadata["function"]](logits.astype(np.float64)), reference, names
    )


def checked(name: str, measure: Callable[[str], Check]) -> Check:
    """The check; if measuring raises, a failed check with the reason."""
    try:
        return measure(name)
    except Exception as error:  # ONNX Runtime's errors share no base class
        return failed(name, error)


def failed(name: str, error: Exception) -> Check:
    """The failed check of a subject that raised an error."""
    return Check(name, float("nan"), 0.0, False, " ".join(str(error).split())[:300])


def _batch_invariance(name: str, graph: Graph, expected: np.ndarray, reference: Reference) -> Check:
    """An image's logits must not depend on the rest of its batch: shuffled batches against one
    image at a time."""
    pixels, names = reference.outputs["pixels"], image_names(reference)
    limit = logit_limit(reference, reference.tolerance.invariance)
    permutation = np.random.default_rng(0).permutation(len(pixels))
    actual = np.empty_like(expected)
    for start in range(0, len(pixels), ROWS):
        rows = permutation[start : start + ROWS]
        actual[rows] = graph(pixels[rows])
    actual = beyond_noise(actual, expected, reference.outputs.get("logits_noise"))
    return worst_difference(name, actual, expected, limit, names)


def _batch_of(
    rows: int, graph: Graph, expected: np.ndarray, reference: Reference
) -> Callable[[str], Check]:
    """A batch of this size returns each of its images its own logits."""
    positions = np.arange(rows) % len(expected)
    limit = logit_limit(reference, reference.tolerance.invariance)
    names = [image_names(reference)[position] for position in positions]

    def measure(name: str) -> Check:
        actual = graph(reference.outputs["pixels"][positions])
        actual = beyond_noise(actual, expected[positions], reference.outputs.get("logits_noise"))
        return worst_difference(name, actual, expected[positions], limit, names)

    return measure


def _extremes(graph: Graph, pixels: np.ndarray) -> Callable[[str], Check]:
    """All black, all white, and a chequered pattern of both: the logits must be finite."""
    black, white = (extreme(pixels, axis=(0, 2, 3), keepdims=True) for extreme in (np.min, np.max))
    shape = pixels.shape[1:]
    chequered = np.where(np.indices(shape).sum(axis=0) % 2, black, white)
    patterns = {"black": black, "white": white, "chequered": chequered}
    images = {
        pattern: np.broadcast_to(pixel, (1, *shape)).copy() for pattern, pixel in patterns.items()
    }

    def measure(name: str) -> Check:
        failures = [
            pattern for pattern, image in images.items() if not np.isfinite(graph(image)).all()
        ]
        return at_most(name, len(failures), 0, ", ".join(failures))

    return measure
