"""``topic_classification`` on a tiny encoder: the data, the folder that is written, the seed."""

from dataclasses import replace

import pytest
from safetensors.numpy import load_file

from converters.sources.huggingface import HuggingFaceFolder
from converters.sources.model_card import card_of
from tests.tiny_models import save_encoder
from tidegate.app.paths import Paths
from tidegate.app.train import run
from training import topics


def test_the_questions_are_distinct_and_their_topics_clear():
    questions = topics.questions()
    assert len(questions) >= 10
    assert all(len(texts) >= topics.LEAST_QUESTIONS for texts in questions.values())
    every = [text for texts in questions.values() for text in texts]
    words = [" ".join(filter(str.isalnum, text.casefold())) for text in every]
    assert len(words) == len(set(words)) > 500


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The encoder is tiny, and trained for a moment."""
    save_encoder("bert", tmp_path / "package" / "model")
    real = topics.required_folder
    monkeypatch.setattr(
        topics,
        "required_folder",
        lambda name: tmp_path / "package" if name == topics.BASE else real(name),
    )
    settings = replace(topics.SETTINGS, epochs=1, max_tokens=16, frozen_layers=1)
    monkeypatch.setattr(topics, "SETTINGS", settings)
    return tmp_path


def test_the_same_seed_trains_the_same_model(tiny):
    lines = []
    first, again, other = (
        run("topic_classification", seed, Paths(tiny / home), lines.append, publish=False)
        for seed, home in ((1, "a"), (1, "b"), (2, "a"))
    )
    assert first.metrics == again.metrics
    weights = [load_file(one.folder / "model.safetensors") for one in (again, other)]
    assert [*weights[0]] == [*weights[1]]
    assert any((weights[0][name] != weights[1][name]).any() for name in weights[0])
    assert first.folder == other.folder != again.folder  # it was trained again, and replaced
    assert any(line.startswith("topic_classification: epoch 1 of 1, ") for line in lines)


def test_the_folder_is_one_that_convert_takes(tiny):
    result = run("topic_classification", 0, Paths(tiny), lambda line: None, publish=False)
    folder = HuggingFaceFolder.open(result.folder)
    folder.require_head("text-classification", "AutoModelForSequenceClassification")
    assert folder.labels() == tuple(sorted(topics.questions()))
    card = card_of(result.folder)
    assert card["metrics"][0] == {
        "name": "macro-F1",
        "value": result.metrics[0].value,
        "data": result.metrics[0].data,
    }
    assert [path.name for path in result.folder.parent.iterdir()] == ["topic_classification"]
    assert result.lines(Paths(tiny))[-1].endswith(".tidegate/trained/topic_classification/")
