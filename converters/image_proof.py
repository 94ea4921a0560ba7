"""Prove an image classifier's graph against the original's logits for the same pixels.

The tolerances are those of FP32: two correct runs of this network differ by about 1e-5 in a logit
(the order of additions), and one of 1e-3 changes no score by more than 1e-3 of itself.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from converters.proof import Check, Proof, at_least, at_most, worst_difference

LOGIT = 1e-3
SCORE = 1e-4
BATCH_SIZES = (1, 2, 3, 16)
ROWS = 16


class Graph:
    """The converted graph, run by ONNX Runtime."""

    def __init__(self, engine: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        self._session = onnxruntime.InferenceSession(
            str(engine), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Logits FP32 [n, classes] of pixels FP32 [n, 3, side, side], as one batch."""
        return np.asarray(self._session.run(None, {"pixels": pixels})[0])


def prove(
    subject: str, graph: Graph, names: Sequence[str], original: Mapping[str, np.ndarray]
) -> Proof:
    """Every check on the oracle's ``pixels`` and ``logits``, whose rows have these names."""
    pixels, logits = original["pixels"], original["logits"]
    got = np.concatenate([graph(row[None]) for row in pixels])
    checks = (
        worst_difference("parity: largest difference of a logit", got, logits, LOGIT, names),
        worst_difference(
            "parity: largest difference of a score", scores(got), scores(logits), SCORE, names
        ),
        at_least("task: same likeliest class", agreement(got, logits), 1.0),
        _batch_invariance(graph, pixels, got, names),
        _dynamic_batch(graph, pixels),
        _extremes(graph, pixels.shape[1:]),
        worst_difference("determinism", graph(pixels[:ROWS]), graph(pixels[:ROWS]), 0.0, names),
    )
    return Proof(subject, len(names), checks)


def scores(logits: np.ndarray) -> np.ndarray:
    """Softmax, FP64 [n, classes]."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def agreement(got: np.ndarray, wanted: np.ndarray) -> float:
    """The share of rows whose likeliest class is the same."""
    return float((got.argmax(axis=1) == wanted.argmax(axis=1)).mean())


def known_photos(
    logits: np.ndarray, names: Sequence[str], labels: Sequence[str], known: Mapping[str, set[str]]
) -> Check:
    """Photos that a person can name get one of those names: the label file is in order."""
    likeliest = {name: labels[row.argmax()] for name, row in zip(names, logits, strict=True)}
    wrong = [name for name, fitting in known.items() if likeliest[name] not in fitting]
    worst = ", ".join(f"{name} is called {likeliest[name]}" for name in wrong)
    return at_most("task: known photos named wrongly", len(wrong), 0, worst)


def golden_label(expected: str, logits: np.ndarray, labels: Sequence[str]) -> Check:
    """The golden sample's label is the original's likeliest, of logits FP32 [classes]."""
    got = labels[int(logits.argmax())]
    return at_most("golden sample: label", int(got != expected), 0, f"{expected!r}, original {got}")


def _batch_invariance(
    graph: Graph, pixels: np.ndarray, alone: np.ndarray, names: Sequence[str]
) -> Check:
    """A picture's logits must not depend on who shares its batch."""
    starts = range(0, len(pixels), ROWS)
    together = np.concatenate([graph(pixels[start : start + ROWS]) for start in starts])
    return worst_difference("batch invariance", together, alone, LOGIT, names)


def _dynamic_batch(graph: Graph, pixels: np.ndarray) -> Check:
    batches = [np.repeat(pixels[:1], rows, axis=0) for rows in BATCH_SIZES]
    wrong = sum(len(graph(batch)) != len(batch) for batch in batches)
    return at_most("dynamic batch axis: sizes that went wrong", wrong, 0)


def _extremes(graph: Graph, shape: Sequence[int]) -> Check:
    """All black, all white, and both in turn: the answer must be a number."""
    black, white = (np.full((1, *shape), value, np.float32) for value in (-127 / 128, 1.0))
    noise = np.where(np.indices(shape).sum(axis=0) % 2, black, white).astype(np.float32)
    wrong = sum(not np.isfinite(graph(pixels)).all() for pixels in (black, white, noise))
    return at_most("extreme pictures: answers that are not finite", wrong, 0)
