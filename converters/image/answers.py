"""What a served image classifier answered: its likeliest labels, beside the original's scores."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException

from converters.image.proof import case_names
from converters.parity import mean_difference
from converters.proof import Check, at_least, at_most, worst_difference
from converters.task import Reference
from converters.tolerance import clear_margin


@dataclass(frozen=True)
class Answer:
    """Of one image, the likeliest first; ``error`` is what came instead."""

    labels: tuple[bytes, ...] = ()
    scores: tuple[float, ...] = ()
    error: str = ""


def answered(infer: Callable[[], Any], images: int) -> list[Answer]:
    """The answers for so many images of one request."""
    try:
        result = infer()
    except InferenceServerException as error:
        return [Answer(error=" ".join(str(error).split())[:300])] * images
    label, score = result.as_numpy("label"), result.as_numpy("score")
    if label.shape != score.shape or len(label) != images:
        return [Answer(error=f"label {label.shape}, score {score.shape}")] * images
    return [Answer(tuple(a), tuple(map(float, b))) for a, b in zip(label, score, strict=True)]


def errors(answers: Sequence[Answer], names: Sequence[str]) -> Check:
    """Every image gets an answer."""
    wrong = [
        f"{name!r}: {each.error}" for name, each in zip(names, answers, strict=True) if each.error
    ]
    return at_most("images that got an error", len(wrong), 0, wrong[0] if wrong else "")


def scores_of(answers: Sequence[Answer], reference: Reference) -> np.ndarray:
    """FP64 [n, top_k]; a row that is not so long is not a number."""
    scores = np.full((len(answers), reference.metadata["top_k"]), np.nan)
    for row, answer in enumerate(answers):
        if len(answer.scores) == scores.shape[1]:
            scores[row] = answer.scores
    return scores


def label_parity(answers: Sequence[Answer], reference: Reference, how: str) -> list[Check]:
    """Each label with the original's score for it, the highest of its scores, and its likeliest."""
    names, allowed = case_names(reference), reference.tolerance
    original, got = reference.answers["scores"], scores_of(answers, reference)
    theirs = np.array(
        [_original_scores(*pair, reference) for pair in zip(answers, original, strict=True)]
    )
    best = -np.sort(-original, axis=1)[:, : got.shape[1]]
    return [
        worst_difference(
            f"parity: the score of each label, {how}", got, theirs, allowed.difference, names
        ),
        worst_difference(
            f"parity: the highest scores, {how}", got, best, allowed.difference, names
        ),
        mean_difference(f"parity: mean difference of a score, {how}", got, best, allowed.mean),
        _likeliest(answers, reference, how),
    ]


def _original_scores(answer: Answer, original: np.ndarray, reference: Reference) -> list[float]:
    """The original's score for each label that was named, not a number for one that it has not.
    Of two classes of one name the nearer is meant, each once."""
    positions = defaultdict(list)
    for place, label in enumerate(reference.metadata["labels"]):
        positions[label.encode()].append(place)
    theirs = [np.nan] * reference.metadata["top_k"]
    for index, (label, score) in enumerate(zip(answer.labels, answer.scores, strict=True)):
        if positions[label] and index < len(theirs):
            place = min(positions[label], key=lambda each: abs(original[each] - score))
            positions[label].remove(place)
            theirs[index] = float(original[place])
    return theirs


def _likeliest(answers: Sequence[Answer], reference: Reference, how: str) -> Check:
    """The share of images with the original's likeliest label, where that leads clearly."""
    names, labels, scores = (
        case_names(reference),
        reference.metadata["labels"],
        reference.answers["scores"],
    )
    ordered = np.sort(scores, axis=1)
    margin = ordered[:, -1] - ordered[:, -2] if scores.shape[1] > 1 else np.ones(len(scores))
    clear = np.flatnonzero(margin > clear_margin(reference.tolerance))
    wrong = []
    for row in clear:
        wanted, got = labels[int(scores[row].argmax())], answers[row].labels[:1]
        if got != (wanted.encode(),):
            wrong.append(f"{names[row]!r} is called {got}, original {wanted!r}")
    share = 1 - len(wrong) / max(1, len(clear))
    name = f"task: same likeliest label, {how}"
    return at_least(name, share, reference.tolerance.agreement, wrong[0] if wrong else "")
