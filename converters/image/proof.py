"""Prove an image classifier's graph against the original's logits for the same pixels.

Logits have no scale of their own: they are measured against how far the original's differ between
the images, so that a graph that is 1 % off is caught however small its numbers are.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from converters.closeness import Closeness, beyond_noise, closeness, same_decision
from converters.parity import spread_checks
from converters.proof import Check, at_most, worst_difference
from converters.runner import OpenRunner, onnx_runner
from converters.self_test import answers_self_test
from converters.task import Reference
from converters.text.classification_proof import FUNCTIONS, parity

BATCH_SIZES = (1, 2, 3, 16)
ROWS = 16
# Of the range of the logits, for each unit that a score may differ by.
LOGITS_PER_SCORE = 5
# Two correct FP32 runs differ by a few units in the last place of the largest logit (6e-8 each);
# below 1e-7 no score can tell.
NOISE, LEAST = 2e-6, 1e-7


class Graph:
    """The converted graph; what its runner raises is for the checks to report."""

    def __init__(self, engine: Path, runner: OpenRunner = onnx_runner) -> None:
        self._session = runner(engine)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Logits FP32 [n, labels] of pixels FP32 [n, 3, height, width], as one batch."""
        return np.asarray(self._session.run(None, {"pixels": pixels})[0])


def graph_checks(graph: Graph, reference: Reference) -> list[Check]:
    """Every check on the original's ``pixels`` and ``logits``, whose rows are ``names``."""
    pixels, names = reference.answers["pixels"], case_names(reference)
    try:
        got = np.concatenate([graph(row[None]) for row in pixels])
    except Exception as error:  # ONNX Runtime raises many kinds
        return [failed("the graph runs", error)]
    few = pixels[:ROWS]
    return [
        *_parity(got, reference, names),
        *_self_test(reference, names),
        checked("batch invariance", lambda name: _batch_invariance(name, graph, got, reference)),
        *(
            checked(f"batch of {rows}", _batch_of(rows, graph, got, reference))
            for rows in BATCH_SIZES
        ),
        checked("extreme images: answers that are not finite", _extremes(graph, pixels)),
        checked(
            "determinism", lambda name: worst_difference(name, graph(few), graph(few), 0.0, names)
        ),
    ]


def parity_checks(graph: Graph, reference: Reference) -> list[Check]:
    """The checks of parity alone."""
    got = np.concatenate([graph(row[None]) for row in reference.answers["pixels"]])
    return _parity(got, reference, case_names(reference))


def _parity(got: np.ndarray, reference: Reference, names: Sequence[str]) -> list[Check]:
    wanted, limit = (
        reference.answers["logits"],
        logit_limit(reference, reference.tolerance.difference),
    )
    largest = worst_difference("parity: largest difference of a logit", got, wanted, limit, names)
    if got.shape != wanted.shape:
        return [largest]
    got = beyond_noise(got, wanted, reference.answers.get("logits_noise"))
    mine, theirs = (_compared(each, reference) for each in (got, wanted))
    spread = spread_checks("parity: logit", mine, theirs, reference.tolerance.shares, names)
    return [largest, *spread, *_score_parity(got, reference, names)]


def _compared(logits: np.ndarray, reference: Reference) -> np.ndarray:
    """Logits less their mean where the scores do not depend on it."""
    if reference.metadata["function"] != "softmax":
        return logits
    return np.asarray(logits.astype(np.float64) - logits.mean(axis=1, keepdims=True))


def _self_test(reference: Reference, names: Sequence[str]) -> list[Check]:
    return answers_self_test(
        lambda got: _parity(got, reference, names), reference.answers["logits"]
    )


def scores_closeness(graph: Graph, reference: Reference) -> Closeness:
    """Every image alone; agreement is the same likeliest label, over all of them."""
    got = np.concatenate([graph(row[None]) for row in reference.answers["pixels"]]).astype(
        np.float64
    )
    scores, wanted = FUNCTIONS[reference.metadata["function"]](got), reference.answers["scores"]
    return closeness(scores, wanted, same_decision(scores, wanted))


def case_names(reference: Reference) -> list[str]:
    """The images' names, in the order of every other array of ``reference.answers``."""
    return [str(name) for name in reference.answers["names"]]


def logit_limit(reference: Reference, score: float) -> float:
    """How far a logit may be off where a score may be by ``score``."""
    logits = reference.answers["logits"].astype(np.float64)
    spread = np.abs(logits - logits.mean(axis=0)).max()
    return float(LOGITS_PER_SCORE * score * spread + NOISE * np.abs(logits).max() + LEAST)


def _score_parity(got: np.ndarray, reference: Reference, names: Sequence[str]) -> list[Check]:
    if got.shape != reference.answers["scores"].shape:
        return []  # the check of the logits has failed already
    return parity(
        FUNCTIONS[reference.metadata["function"]](got.astype(np.float64)), reference, names
    )


def checked(name: str, measure: Callable[[str], Check]) -> Check:
    """The check, failed with the reason if its subject cannot be run at all."""
    try:
        return measure(name)
    except Exception as error:  # ONNX Runtime raises many kinds
        return failed(name, error)


def failed(name: str, error: Exception) -> Check:
    """What is reported of a subject that raises instead of answering."""
    return Check(name, float("nan"), 0.0, False, " ".join(str(error).split())[:300])


def _batch_invariance(name: str, graph: Graph, alone: np.ndarray, reference: Reference) -> Check:
    """An image's logits must not depend on who shares its batch: two batches of other company."""
    pixels, names = reference.answers["pixels"], case_names(reference)
    limit = logit_limit(reference, reference.tolerance.invariance)
    order = np.random.default_rng(0).permutation(len(pixels))
    together = np.empty_like(alone)
    for start in range(0, len(pixels), ROWS):
        rows = order[start : start + ROWS]
        together[rows] = graph(pixels[rows])
    together = beyond_noise(together, alone, reference.answers.get("logits_noise"))
    return worst_difference(name, together, alone, limit, names)


def _batch_of(
    rows: int, graph: Graph, alone: np.ndarray, reference: Reference
) -> Callable[[str], Check]:
    """A batch of this size gives each of its images its own answer."""
    positions = np.arange(rows) % len(alone)
    limit = logit_limit(reference, reference.tolerance.invariance)
    names = [case_names(reference)[place] for place in positions]

    def measure(name: str) -> Check:
        got = graph(reference.answers["pixels"][positions])
        got = beyond_noise(got, alone[positions], reference.answers.get("logits_noise"))
        return worst_difference(name, got, alone[positions], limit, names)

    return measure


def _extremes(graph: Graph, pixels: np.ndarray) -> Callable[[str], Check]:
    """All black, all white, and both in turn: the answer must be a number."""
    black, white = (edge(pixels, axis=(0, 2, 3), keepdims=True) for edge in (np.min, np.max))
    shape = pixels.shape[1:]
    chequered = np.where(np.indices(shape).sum(axis=0) % 2, black, white)
    images = {
        named: np.broadcast_to(each, (1, *shape)).copy()
        for named, each in (("black", black), ("white", white), ("chequered", chequered))
    }

    def measure(name: str) -> Check:
        wrong = [named for named, image in images.items() if not np.isfinite(graph(image)).all()]
        return at_most(name, len(wrong), 0, ", ".join(wrong))

    return measure
