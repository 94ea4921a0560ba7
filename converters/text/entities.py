"""The entities of texts, as the original and as the served pipeline give them, side by side."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from converters.proof import Check, at_least, at_most
from converters.task import Reference
from converters.tolerance import Tolerance, clear_margin

Span = tuple[int, int, str]  # start and end in code points, and the label


@dataclass(frozen=True)
class Found:
    """One text's entities: each span with its score, in the text's order. ``slices`` are the texts
    that came with them; the original gives none."""

    spans: tuple[Span, ...]
    scores: tuple[float, ...]
    slices: tuple[str, ...] = ()


def original_entities(reference: Reference, texts: int, prefix: str = "") -> list[Found]:
    """What the original found in each of its ``texts``."""
    row, start, end, label, score = (
        reference.answers[prefix + name] for name in ("row", "start", "end", "label", "score")
    )
    founds = []
    for index in range(texts):
        mine = row == index
        spans = zip(start[mine].tolist(), end[mine].tolist(), label[mine].tolist(), strict=True)
        founds.append(Found(tuple(spans), tuple(score[mine].tolist())))
    return founds


def served_entities(answers: Sequence[Mapping[str, np.ndarray]]) -> list[Found]:
    """The rows of some requests' output tensors, one Found a text."""
    return [
        _row({name: values[index] for name, values in answer.items()})
        for answer in answers
        for index in range(len(answer["count"]))
    ]


def _row(tensors: Mapping[str, np.ndarray]) -> Found:
    count = int(tensors["count"][0])
    start, end, score = (tensors[name][:count].tolist() for name in ("start", "end", "score"))
    label, entity = (
        [value.decode("utf-8", "replace") for value in tensors[name][:count]]
        for name in ("label", "entity")
    )
    return Found(tuple(zip(start, end, label, strict=True)), tuple(score), tuple(entity))


def span_f1(
    name: str,
    got: Sequence[Found],
    wanted: Sequence[Found],
    clear: Sequence[bool],
    limit: float,
    texts: Sequence[str],
) -> Check:
    """F1 of the exact spans (start, end and label), over the texts that have a ``clear`` answer."""
    hits = mine = theirs = 0
    worst = ""
    for each, other, text, counts in zip(got, wanted, texts, clear, strict=True):
        if not counts:
            continue
        same = (Counter(each.spans) & Counter(other.spans)).total()
        hits, mine, theirs = hits + same, mine + len(each.spans), theirs + len(other.spans)
        if each.spans != other.spans and not worst:
            worst = f"{text[:60]!r}: {_difference(each, other)}"
    f1 = 2 * hits / (mine + theirs) if mine + theirs else 1.0
    return at_least(name, f1, limit, worst)


def score_difference(
    name: str, got: Sequence[Found], wanted: Sequence[Found], limit: float, texts: Sequence[str]
) -> Check:
    """The largest difference of a score, over the spans that both have."""
    largest, worst = 0.0, ""
    for each, other, text in zip(got, wanted, texts, strict=True):
        for span, score, theirs in _matched(each, other):
            gap = abs(score - theirs)
            if not gap <= largest:  # a NaN is never at most anything
                largest, worst = gap, f"{text[:60]!r} {span}: {score:.6g}, original {theirs:.6g}"
    return at_most(name, largest, limit, worst)


def _matched(mine: Found, theirs: Found) -> Iterator[tuple[Span, float, float]]:
    """Both scores of each span that both have. One span may be there more than once: a character
    that the tokenizer takes apart has tokens that begin and end alike."""
    left: dict[Span, list[float]] = {}
    for span, score in zip(theirs.spans, theirs.scores, strict=True):
        left.setdefault(span, []).append(score)
    for span, score in zip(mine.spans, mine.scores, strict=True):
        if left.get(span):
            yield span, score, left[span].pop(0)


def slices_of_text(name: str, got: Sequence[Found], texts: Sequence[str]) -> Check:
    """Entities whose text is not what stands in the text from their start to their end."""
    wrong = [
        f"{text[:60]!r} {span}: {mine!r}, original {text[span[0] : span[1]]!r}"
        for found, text in zip(got, texts, strict=True)
        for span, mine in zip(found.spans, found.slices, strict=True)
        if mine != text[span[0] : span[1]]
    ]
    return at_most(name, len(wrong), 0, wrong[0] if wrong else "")


def clear_texts(reference: Reference, allowed: Tolerance, prefix: str = "") -> list[bool]:
    """For each text, whether every token's likeliest label is ahead of the next by more than the
    difference that is allowed anyway: where it is not, a span may rightly be another."""
    scores = token_scores(reference.answers[f"{prefix}logits"])
    ordered = np.sort(scores, axis=1)
    ahead = ordered[:, -1] - ordered[:, -2] if scores.shape[1] > 1 else np.ones(len(scores))
    sure = (ahead > clear_margin(allowed)) | ~reference.answers[f"{prefix}of_text"]
    ends = np.cumsum(reference.answers[f"{prefix}token_count"])[:-1]
    return [bool(part.all()) for part in np.split(sure, ends)]


def token_scores(logits: np.ndarray) -> np.ndarray:
    """Probabilities FP64 [tokens, labels] of logits."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _difference(mine: Found, theirs: Found) -> str:
    """The first spans that differ, both."""
    for one, other in zip(mine.spans, theirs.spans, strict=False):
        if one != other:
            return f"{one}, original {other}"
    return f"{len(mine.spans)} entities, original {len(theirs.spans)}"
