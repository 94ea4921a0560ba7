"""Compare a served image classifier's likeliest labels with the original's scores."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException

from converters.proof.checks import Check, at_least, at_most, worst_difference
from converters.proof.parity import mean_difference
from converters.proof.reference import Reference
from converters.proof.tolerance import clear_margin
from converters.tasks.image_classification.checks import image_names


@dataclass(frozen=True)
class Prediction:
    """The labels of one image, the likeliest first; ``error`` where there are none."""

    labels: tuple[bytes, ...] = ()
    scores: tuple[float, ...] = ()
    error: str = ""


def predictions_of(infer: Callable[[], Any], count: int) -> list[Prediction]:
    """The predictions for the ``count`` images of one request."""
    try:
        result = infer()
    except InferenceServerException as error:
        return [Prediction(error=" ".join(str(error).split())[:300])] * count
    label, score = result.as_numpy("label"), result.as_numpy("score")
    if label.shape != score.shape or len(label) != count:
        return [Prediction(error=f"label {label.shape}, score {score.shape}")] * count
    return [
        Prediction(tuple(labels), tuple(map(float, scores)))
        for labels, scores in zip(label, score, strict=True)
    ]


def errors(predictions: Sequence[Prediction], names: Sequence[str]) -> Check:
    """Every image gets a prediction."""
    failures = [
        f"{name!r}: {prediction.error}"
        for name, prediction in zip(names, predictions, strict=True)
        if prediction.error
    ]
    return at_most("images that got an error", len(failures), 0, failures[0] if failures else "")


def scores_of(predictions: Sequence[Prediction], reference: Reference) -> np.ndarray:
    """FP64 [n, top_k]; NaN in rows of another length."""
    scores = np.full((len(predictions), reference.metadata["top_k"]), np.nan)
    for row, prediction in enumerate(predictions):
        if len(prediction.scores) == scores.shape[1]:
            scores[row] = prediction.scores
    return scores


def label_parity(predictions: Sequence[Prediction], reference: Reference, mode: str) -> list[Check]:
    """Compare each label's score with the original's for it, the scores with the original's
    highest, and the likeliest label."""
    names, tolerance = image_names(reference), reference.tolerance
    original, actual = reference.outputs["scores"], scores_of(predictions, reference)
    original_scores = np.array(
        [_original_scores(*row, reference) for row in zip(predictions, original, strict=True)]
    )
    highest = -np.sort(-original, axis=1)[:, : actual.shape[1]]
    return [
        worst_difference(
            f"parity: the score of each label, {mode}",
            actual,
            original_scores,
            tolerance.difference,
            names,
        ),
        worst_difference(
            f"parity: the highest scores, {mode}", actual, highest, tolerance.difference, names
        ),
        mean_difference(
            f"parity: mean difference of a score, {mode}", actual, highest, tolerance.mean
        ),
        _likeliest(predictions, reference, mode),
    ]


def _original_scores(
    prediction: Prediction, original: np.ndarray, reference: Reference
) -> list[float]:
    """The original's score for each predicted label, NaN for one that it does not have. Where two
    classes have one name, the class with the nearer score is taken, each once."""
    indexes = defaultdict(list)
    for index, label in enumerate(reference.metadata["labels"]):
        indexes[label.encode()].append(index)
    scores = [np.nan] * reference.metadata["top_k"]
    for rank, (label, score) in enumerate(zip(prediction.labels, prediction.scores, strict=True)):
        if indexes[label] and rank < len(scores):
            index = min(indexes[label], key=lambda candidate: abs(original[candidate] - score))
            indexes[label].remove(index)
            scores[rank] = float(original[index])
    return scores


def _likeliest(predictions: Sequence[Prediction], reference: Reference, mode: str) -> Check:
    """The share of images with the original's likeliest label, of those where it leads clearly."""
    names, labels = image_names(reference), reference.metadata["labels"]
    scores = reference.outputs["scores"]
    ordered = np.sort(scores, axis=1)
    margin = ordered[:, -1] - ordered[:, -2] if scores.shape[1] > 1 else np.ones(len(scores))
    clear = np.flatnonzero(margin > clear_margin(reference.tolerance))
    failures = []
    for row in clear:
        expected, actual = labels[int(scores[row].argmax())], predictions[row].labels[:1]
        if actual != (expected.encode(),):
            failures.append(f"{names[row]!r} is called {actual}, original {expected!r}")
    share = 1 - len(failures) / max(1, len(clear))
    name = f"task: same likeliest label, {mode}"
    return at_least(name, share, reference.tolerance.agreement, failures[0] if failures else "")
