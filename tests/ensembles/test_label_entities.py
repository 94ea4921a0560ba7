"""The step that joins tokens into entities, imported as an ordinary module."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from ensembles.steps.label_entities import EntityFinder, TritonPythonModel, as_tensors

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC", "X-Y-Z", "A-O"]
WORDS = ["Ann", "Lee", "of", "北京", "👩‍👩‍👧", "Zoe\u0308", "x", "y"]
TEXT = " ".join(WORDS)


def _spans(words=WORDS) -> np.ndarray:
    """Each word's code points, with a special token before and after."""
    start, spans = 0, [(-1, -1)]
    for word in words:
        spans.append((start, start + len(word)))
        start += len(word) + 1
    return np.array([[*spans, (-1, -1)]], dtype=np.int32)


def _logits(names, margin=5.0) -> np.ndarray:
    """One token per label, between two special tokens that would be entities."""
    logits = np.zeros((1, len(names) + 2, len(LABELS)), dtype=np.float32)
    for index, name in enumerate(["B-PER", *names, "B-PER"]):
        logits[0, index, LABELS.index(name)] = margin
    return logits


def _find(names):
    (entities,) = EntityFinder(LABELS)(_logits(names), _spans(WORDS[: len(names)]), [TEXT.encode()])
    return [(entity.entity, entity.label) for entity in entities]


@pytest.mark.parametrize(
    ("labels", "entities"),
    [
        (["B-PER", "I-PER", "O"], [("Ann Lee", "PER")]),
        (["B-PER", "B-PER", "O"], [("Ann", "PER"), ("Lee", "PER")]),
        (["I-PER", "I-PER", "O"], [("Ann Lee", "PER")]),
        (["I-PER", "I-LOC", "O"], [("Ann", "PER"), ("Lee", "LOC")]),
        (["B-PER", "O", "I-PER"], [("Ann", "PER"), ("of", "PER")]),
        (["MISC", "MISC", "O"], [("Ann Lee", "MISC")]),  # tokens join even without B- or I-
        (["X-Y-Z", "O", "A-O"], [("Ann", "Y-Z")]),  # what follows the first hyphen is the name
        (["O", "O", "O", "B-LOC", "O", "I-PER"], [("北京", "LOC"), ("Zoe\u0308", "PER")]),
        (["O", "O"], []),
    ],
)
def test_tokens_are_joined(labels, entities):
    assert _find(labels) == entities


def _original(logits, spans) -> list[tuple]:
    """The entities that transformers' own code makes of the same tokens."""
    from transformers import TokenClassificationPipeline

    pipeline = object.__new__(TokenClassificationPipeline)
    pipeline.model = SimpleNamespace(config=SimpleNamespace(id2label=dict(enumerate(LABELS))))
    pipeline.tokenizer = SimpleNamespace(convert_tokens_to_string=" ".join)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores = exponentials / exponentials.sum(axis=-1, keepdims=True)
    tokens = [
        {"scores": row, "word": "", "index": index, "start": int(start), "end": int(end)}
        for index, (row, (start, end)) in enumerate(zip(scores, spans, strict=True))
        if start >= 0
    ]
    from transformers.pipelines.token_classification import AggregationStrategy

    groups = pipeline.aggregate(tokens, AggregationStrategy.SIMPLE)
    return [
        (group["start"], group["end"], group["entity_group"], float(group["score"]))
        for group in groups
        if group["entity_group"] != "O"
    ]


@pytest.mark.parametrize("seed", range(20))
def test_any_labels_are_joined_as_transformers_joins_them(seed):
    logits = np.random.default_rng(seed).normal(0, 3, (1, 10, len(LABELS))).astype(np.float32)
    (entities,) = EntityFinder(LABELS)(logits, _spans(), [TEXT.encode()])
    expected = _original(logits[0], _spans()[0])
    spans = [(entity.start, entity.end, entity.label) for entity in entities]
    assert spans == [(start, end, label) for start, end, label, _ in expected]
    scores = [entity.score for entity in entities]
    assert scores == pytest.approx([score for *_, score in expected], abs=1e-7)
    assert all(entity.entity == TEXT[entity.start : entity.end] for entity in entities)


def test_rows_are_padded_to_the_largest_and_counted():
    logits = np.concatenate([_logits(["O"] * 8), _logits(["B-PER", "O", "B-LOC"] + ["O"] * 5)])
    spans = np.concatenate([_spans(), _spans()])
    tensors = as_tensors(EntityFinder(LABELS)(logits, spans, [TEXT.encode()] * 2))
    assert tensors["count"].tolist() == [[0], [2]]
    assert tensors["entity"].tolist() == [[b"", b""], [b"Ann", b"of"]]
    assert tensors["label"].tolist() == [[b"", b""], [b"PER", b"LOC"]]
    assert tensors["start"].tolist() == [[0, 0], [0, 8]]
    assert tensors["end"].dtype == tensors["count"].dtype == np.int32
    assert tensors["score"].dtype == np.float32


def test_without_an_entity_there_is_one_empty_element():
    tensors = as_tensors(EntityFinder(LABELS)(_logits(["O"] * 8), _spans(), [TEXT.encode()]))
    assert tensors["count"].tolist() == [[0]]
    assert tensors["entity"].tolist() == [[b""]]
    assert tensors["score"].tolist() == [[0.0]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error(value):
    logits = _logits(["O"] * 8)
    logits[0, 3, 1] = value
    with pytest.raises(ValueError, match="not finite"):
        EntityFinder(LABELS)(logits, _spans(), [TEXT.encode()])


def test_logits_of_other_labels_or_tokens_are_an_error():
    with pytest.raises(ValueError, match=r"returned \(1, 10, 7\), not \(1, 10, 8\)"):
        EntityFinder(LABELS)(_logits(["O"] * 8)[..., :7], _spans(), [TEXT.encode()])
    with pytest.raises(ValueError, match=r"returned \(1, 9, 8\)"):
        EntityFinder(LABELS)(_logits(["O"] * 7), _spans(), [TEXT.encode()])


def test_the_model_reads_the_labels_of_its_version(tmp_path):
    (tmp_path / "3").mkdir()
    labels = ["O", "B-line\nbreak"]
    (tmp_path / "3" / "labels.json").write_text(json.dumps(labels))
    model = TritonPythonModel()
    model.initialize({"model_repository": str(tmp_path), "model_version": "3"})
    logits = np.array([[[0, 5]]], dtype=np.float32)
    (entities,) = model._find(logits, np.array([[[0, 3]]]), [b"Ann"])
    assert [entity.label for entity in entities] == ["line\nbreak"]
