"""Compare the entities that the original and the served pipeline find in the same texts."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from converters.proof.checks import Check, at_least, at_most
from converters.proof.reference import Reference
from converters.proof.tolerance import Tolerance, clear_margin

Span = tuple[int, int, str]  # start and end in code points, and the label


@dataclass(frozen=True)
class TextEntities:
    """One text's entities: each span with its score, in the order of the text. ``slices`` are the
    entities' texts; the original returns none."""

    spans: tuple[Span, ...]
    scores: tuple[float, ...]
    slices: tuple[str, ...] = ()


def original_entities(reference: Reference, texts: int, prefix: str = "") -> list[TextEntities]:
    """The entities that the original found in each of so many ``texts``. ``prefix`` is that of the
    arrays in ``reference.outputs``: "" or "long_"."""
    row, start, end, label, score = (
        reference.outputs[prefix + name] for name in ("row", "start", "end", "label", "score")
    )
    entities = []
    for index in range(texts):
        own = row == index
        spans = zip(start[own].tolist(), end[own].tolist(), label[own].tolist(), strict=True)
        entities.append(TextEntities(tuple(spans), tuple(score[own].tolist())))
    return entities


def served_entities(responses: Sequence[Mapping[str, np.ndarray]]) -> list[TextEntities]:
    """The entities of each text, from the output tensors of several requests."""
    return [
        _row({name: values[index] for name, values in response.items()})
        for response in responses
        for index in range(len(response["count"]))
    ]


def _row(tensors: Mapping[str, np.ndarray]) -> TextEntities:
    count = int(tensors["count"][0])
    start, end, score = (tensors[name][:count].tolist() for name in ("start", "end", "score"))
    label, entity = (
        [value.decode("utf-8", "replace") for value in tensors[name][:count]]
        for name in ("label", "entity")
    )
    return TextEntities(tuple(zip(start, end, label, strict=True)), tuple(score), tuple(entity))


def span_f1(
    name: str,
    actual: Sequence[TextEntities],
    expected: Sequence[TextEntities],
    limit: float,
    texts: Sequence[str],
) -> Check:
    """F1 of the exact spans (start, end and label)."""
    hits = found_spans = original_spans = 0
    worst = ""
    for predicted, original, text in zip(actual, expected, texts, strict=True):
        hits += (Counter(predicted.spans) & Counter(original.spans)).total()
        found_spans += len(predicted.spans)
        original_spans += len(original.spans)
        if predicted.spans != original.spans and not worst:
            worst = f"{text[:60]!r}: {_difference(predicted, original)}"
    f1 = 2 * hits / (found_spans + original_spans) if found_spans + original_spans else 1.0
    return at_least(name, f1, limit, worst)


def score_difference(
    name: str,
    actual: Sequence[TextEntities],
    expected: Sequence[TextEntities],
    limit: float,
    texts: Sequence[str],
) -> Check:
    """The largest difference of a score, over the spans that both have."""
    largest, worst = 0.0, ""
    for predicted, original, text in zip(actual, expected, texts, strict=True):
        for span, score, original_score in _matched(predicted, original):
            gap = abs(score - original_score)
            if not gap <= largest:  # true for NaN
                largest = gap
                worst = f"{text[:60]!r} {span}: {score:.6g}, original {original_score:.6g}"
    return at_most(name, largest, limit, worst)


def _matched(
    predicted: TextEntities, original: TextEntities
) -> Iterator[tuple[Span, float, float]]:
    """Each span that both have, with both scores. A span may occur more than once: a character that
    the tokenizer splits has several tokens with the same start and end."""
    unmatched: dict[Span, list[float]] = {}
    for span, score in zip(original.spans, original.scores, strict=True):
        unmatched.setdefault(span, []).append(score)
    for span, score in zip(predicted.spans, predicted.scores, strict=True):
        if unmatched.get(span):
            yield span, score, unmatched[span].pop(0)


def slices_of_text(name: str, actual: Sequence[TextEntities], texts: Sequence[str]) -> Check:
    """No entity's text differs from the text between its start and its end."""
    wrong = [
        f"{text[:60]!r} {span}: {slice_!r}, original {text[span[0] : span[1]]!r}"
        for entities, text in zip(actual, texts, strict=True)
        for span, slice_ in zip(entities.spans, entities.slices, strict=True)
        if slice_ != text[span[0] : span[1]]
    ]
    return at_most(name, len(wrong), 0, wrong[0] if wrong else "")


def clear_texts(reference: Reference, tolerance: Tolerance, prefix: str = "") -> list[bool]:
    """For each text, whether every token's likeliest label leads by more than the tolerance of a
    score: where one does not, another span may be as right."""
    return [bool(part.all()) for part in _clear_tokens(reference, tolerance, prefix)]


def undecided_characters(
    reference: Reference, tolerance: Tolerance, texts: Sequence[str], prefix: str = ""
) -> list[np.ndarray]:
    """For each text the characters, BOOL [characters], of tokens that are not clear and of their
    neighbours: a span with any of these may as well begin or end elsewhere, or be the mean of other
    tokens. ``prefix`` is that of the arrays in ``reference.outputs``: "" or "long_"."""
    tokenizer = Tokenizer.from_file(str(reference.folder / "pre" / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(int(reference.metadata["buckets"][-1]))
    parts = _clear_tokens(reference, tolerance, prefix)
    characters = []
    for text, clear in zip(texts, parts, strict=True):
        offsets = tokenizer.encode(text).offsets
        # A text that this tokenizer cuts elsewhere.
        undecided = np.full(len(text), len(offsets) != len(clear) and not clear.all())
        if len(offsets) == len(clear):
            for index in np.flatnonzero(~clear):
                for start, end in offsets[max(0, index - 1) : index + 2]:
                    undecided[start:end] = True
        characters.append(undecided)
    return characters


def _clear_tokens(reference: Reference, tolerance: Tolerance, prefix: str) -> list[np.ndarray]:
    """For each text the tokens, BOOL [tokens], that are special or whose likeliest label leads by
    more than the tolerance of a score."""
    scores = token_scores(reference.outputs[f"{prefix}logits"])
    ordered = np.sort(scores, axis=1)
    margins = ordered[:, -1] - ordered[:, -2] if scores.shape[1] > 1 else np.ones(len(scores))
    is_clear = (margins > clear_margin(tolerance)) | ~reference.outputs[f"{prefix}of_text"]
    return np.split(is_clear, np.cumsum(reference.outputs[f"{prefix}token_count"])[:-1])


def clear_entities(
    entities: Sequence[TextEntities], undecided: Sequence[np.ndarray]
) -> list[TextEntities]:
    """Of each text's entities those without an undecided character."""
    return [
        _chosen(
            predicted,
            [not characters[max(0, start) : end].any() for start, end, _ in predicted.spans],
        )
        for predicted, characters in zip(entities, undecided, strict=True)
    ]


def _chosen(entities: TextEntities, keep: Sequence[bool]) -> TextEntities:
    return TextEntities(
        tuple(span for span, kept in zip(entities.spans, keep, strict=True) if kept),
        tuple(score for score, kept in zip(entities.scores, keep, strict=True) if kept),
    )


def token_scores(logits: np.ndarray) -> np.ndarray:
    """Probabilities FP64 [tokens, labels] from logits [tokens, labels]."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def _difference(predicted: TextEntities, original: TextEntities) -> str:
    """The first pair of spans that differ, or how many there are."""
    for span, original_span in zip(predicted.spans, original.spans, strict=False):
        if span != original_span:
            return f"{span}, original {original_span}"
    return f"{len(predicted.spans)} entities, original {len(original.spans)}"
