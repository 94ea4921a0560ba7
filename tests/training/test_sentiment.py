"""``sentiment`` on a tiny encoder: the folder that is written, the seed, the layers that stay."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from converters.sources.huggingface import HuggingFaceFolder
from converters.sources.model_card import card_of
from tests.tiny_models import save_encoder
from tidegate.app.paths import Paths
from tidegate.app.train import run
from training import reviews, sentiment
from training.classifier import Classifier, Settings, in_batches
from training.customer_messages import CHINESE_SENTIMENT, ENGLISH_SENTIMENT


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The encoder is tiny, and trained for a moment on a few pieces."""
    monkeypatch.setattr(
        sentiment.multilingual_e5,
        "save",
        lambda path, folder, layers: save_encoder("bert", folder, num_hidden_layers=2),
    )
    few = reviews.pieces()
    monkeypatch.setattr(reviews, "pieces", lambda: [*few[:120], *few[-120:]])
    settings = replace(sentiment.SETTINGS, epochs=1, max_tokens=16, frozen_layers=1)
    monkeypatch.setattr(sentiment, "SETTINGS", settings)
    return tmp_path


def _train(home, seed):
    return run("sentiment", seed, Paths(home), lambda line: None, publish=False)


def test_the_same_seed_trains_the_same_model(tiny):
    first, again, other = (
        _train(tiny / home, seed) for seed, home in ((1, "a"), (1, "b"), (2, "c"))
    )
    assert first.metrics == again.metrics
    weights = [load_file(one.folder / "model.safetensors") for one in (first, again, other)]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any((weights[0][name] != weights[2][name]).any() for name in weights[0])


def test_the_folder_is_one_that_convert_takes_with_chinese_samples(tiny):
    result = _train(tiny, 0)
    folder = HuggingFaceFolder.open(result.folder)
    folder.require_head("text-classification", "AutoModelForSequenceClassification")
    assert folder.labels() == reviews.LABELS
    samples = (result.folder / "samples.txt").read_text(encoding="utf-8").splitlines()
    assert samples[: len(CHINESE_SENTIMENT)] == [text for text, _ in CHINESE_SENTIMENT]
    assert len(samples) > len(CHINESE_SENTIMENT) and all(samples)
    card = card_of(result.folder)
    assert [metric["name"] for metric in card["metrics"]] == ["accuracy", "macro-F1"] * 3
    assert "no neutral" in card["limits"] and card["language"] == ["zh", "en"]


def test_the_messages_are_distinct_and_balanced():
    for messages in (CHINESE_SENTIMENT, ENGLISH_SENTIMENT):
        assert len(dict(messages)) == len(messages) == 30
        assert sum(label == "positive" for _, label in messages) == 15


def test_frozen_layers_and_the_embeddings_stay_as_they_are(tmp_path):
    before = save_encoder("bert", tmp_path / "encoder")
    model = Classifier(before, reviews.LABELS, seed=0)
    pairs = [("good words", "positive"), ("bad words", "negative")] * 8
    model.train(pairs, Settings(epochs=1, frozen_layers=1), lambda line: None)
    model.save(tmp_path / "trained")
    old, new = (load_file(tmp_path / name / "model.safetensors") for name in ("encoder", "trained"))
    changed = {name for name in old if not np.array_equal(old[name], new[f"bert.{name}"])}
    assert any("layer.1." in name for name in changed)
    assert not any("embeddings" in name or "layer.0." in name for name in changed)


def test_batches_of_similar_lengths_hold_every_pair_once():
    import random

    pairs = [("x" * (7 * number % 50), str(number)) for number in range(45)]
    settings = Settings(epochs=1, batch=4, similar_lengths=3)
    rows = list(in_batches(pairs, settings, random.Random(0)))  # noqa: S311
    assert sorted(pair for batch in rows for pair in batch) == sorted(pairs)
    assert all(len(batch) <= 4 for batch in rows)
    widths = [
        max(map(len, texts)) - min(map(len, texts)) for texts in ([t for t, _ in b] for b in rows)
    ]
    assert sum(widths) / len(widths) < 20


def test_a_text_is_read_further_when_it_is_measured_than_when_it_is_learnt_from(tmp_path):
    model = Classifier(save_encoder("bert", tmp_path / "encoder"), reviews.LABELS, seed=0)
    model.predict([])  # in evaluation mode
    same = "a room with a view "
    texts = [f"{same * 3}{end}" for end in ("good", "bad")]
    cut, whole = (model._logits(texts, tokens).tolist() for tokens in (8, None))
    # Rows of a batch may differ in the last bit: which kernel takes a row depends on the machine.
    assert cut[0] == pytest.approx(cut[1], abs=1e-6)
    assert whole[0] != pytest.approx(whole[1], abs=1e-4)
