"""``multilingual_embedding`` on a tiny encoder: a folder for ``convert``, and its metrics."""

import pytest

from converters.sources.model_card import card_of
from converters.sources.sentence_embedding import SentenceFolder
from tests.tiny_models import save_encoder
from tidegate.app.paths import Paths
from tidegate.app.train import run
from training import multilingual_embedding
from training.knowledge_base import questions


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setattr(
        multilingual_embedding.multilingual_e5,
        "save",
        lambda path, folder, layers: save_encoder("bert", folder),
    )
    return run("multilingual_embedding", 0, Paths(tmp_path), lambda line: None, publish=False)


def test_the_folder_is_a_sentence_embedding_of_means_of_length_1(written):
    folder = SentenceFolder.open(written.folder)
    assert [name for name, _ in folder.modules] == ["Pooling", "Normalize"]
    model = folder.load()
    assert model.max_seq_length == multilingual_embedding.MAX_TOKENS
    assert model[1].pooling_mode == "mean"


def test_recall_is_measured_in_both_languages_on_held_out_messages(written):
    card = card_of(written.folder)
    measured = [(metric["name"], metric["data"]) for metric in card["metrics"]]
    inside = {
        language: sum(bool(question.answered_by) for question in questions(language)[1])
        for language in ("zh", "en")
    }
    assert measured == [
        (f"recall@{rank}", f"{inside[language]} held-out paraphrases, {name}")
        for language, name in (("zh", "Chinese"), ("en", "English"))
        for rank in (1, 3)
    ]
    samples = (written.folder / "samples.txt").read_text(encoding="utf-8").splitlines()
    assert samples == [
        question.message for language in ("zh", "en") for question in questions(language)[1]
    ]
