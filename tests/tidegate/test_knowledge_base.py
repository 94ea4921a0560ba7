"""A knowledge base becomes the next version of ``smart_reply``; what people ask of it is read."""

import json

import numpy as np
import pytest

from ensembles.smart_reply import EmbeddingSteps
from modelspec.declaration import Declaration
from serving.publish.deployment import Deployment
from serving.repository.model_repository import ModelRepository
from tidegate.app.knowledge_base import (
    EMBEDDINGS,
    KnowledgeBase,
    _report_scripts,
    language_of,
    publish,
)
from training.knowledge_base import Evaluation, Thresholds, read_messages
from training.knowledge_files import Entry
from training.recipe import Metric, TrainingError

STEPS = EmbeddingSteps(("text_embedding_pre", 3), ("text_embedding_onnx.g2", 5), 3, 32)
ENTRIES = [Entry("Here.", "faq#1", "Where?"), Entry("No.", "faq#2", "Really?")]
VECTORS = np.array([[1, 0, 0], [0, 1, 0]], dtype=np.float32)
EVALUATION = Evaluation(Thresholds(0.62, 0.5), (Metric("recall@1", 0.9, "10 messages"),))


def _knowledge(entries=ENTRIES, vectors=VECTORS, is_measured=True, language="en"):
    return KnowledgeBase(entries, vectors, EVALUATION, EMBEDDINGS[language], True, is_measured)


@pytest.fixture
def deployment(tmp_path):
    return Deployment(ModelRepository(tmp_path / "model_repository"), [])


def test_each_build_is_a_version_that_pins_its_embedding(deployment):
    repository = deployment.repository
    assert publish(_knowledge(), STEPS, deployment) == ("smart_reply", 1)
    pins = {"text_embedding_pre": 3, "text_embedding_onnx.g2": 5, "smart_reply_post": 1}
    assert repository.pinned_members("smart_reply") == pins
    more = [*ENTRIES, Entry("A fact.", "book")]
    vectors = np.eye(3, dtype=np.float32)
    assert publish(_knowledge(more, vectors), STEPS, deployment) == ("smart_reply", 2)
    assert repository.pinned_members("smart_reply") == {**pins, "smart_reply_post": 2}
    folder = repository.version_folder("smart_reply_post", 2)
    knowledge = json.loads((folder / "knowledge.json").read_text())
    assert [entry["text"] for entry in knowledge["entries"]] == ["Here.", "No.", "A fact."]
    assert np.array_equal(np.load(folder / "vectors.npy"), vectors)
    assert publish(_knowledge(more, vectors), STEPS, deployment) == ("smart_reply", 2)  # the same


@pytest.mark.parametrize("is_measured", [True, False])
def test_the_card_has_the_thresholds_and_what_was_measured(deployment, is_measured):
    publish(_knowledge(is_measured=is_measured), STEPS, deployment)
    declaration = Declaration.of(deployment.repository.config("smart_reply"))
    assert declaration.endpoint and declaration.probe and not declaration.error
    card = declaration.endpoint.card
    assert card["thresholds"] == {"confident": 0.62, "possible": 0.5}
    assert (card["entries"], card["datasets"]) == (2, ["faq"])
    if is_measured:
        assert card["metrics"] == [{"name": "recall@1", "value": 0.9, "data": "10 messages"}]
    else:
        assert "default knowledge base" in card["thresholds_from"] and "metrics" not in card


def test_an_entry_that_does_not_find_itself_is_not_published(deployment):
    with pytest.raises(TrainingError, match=r"'Really\?' .* does not find itself"):
        publish(_knowledge(vectors=VECTORS * [[1], [0.5]]), STEPS, deployment)
    assert deployment.repository.active_version("smart_reply") == 0


def _asked(tmp_path, *lines):
    path = tmp_path / "asked.csv"
    path.write_text("\n".join(["message,question", *lines]))
    return path


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_card_names_the_embedding_and_what_it_reads(language):
    card, embedding = _knowledge(language=language).card(), EMBEDDINGS[language]
    assert (card["embedding"], card["base_model"]) == (embedding.pipeline, embedding.base_model)
    assert language in card["language"] and embedding.limits in card["limits"]


def _entries(*questions):
    return [Entry("text", "faq", question) for question in questions]


@pytest.mark.parametrize(
    ("questions", "language"),
    [
        (("Where?", "How?"), "en"),
        (("Where?", "你们几点开门"), "zh"),
        (("Wi-Fi 密码是什么",), "zh"),
        (("Where is 北京 street?",), "en"),
        (("24/7", "Где?", "Öffnungszeiten"), "en"),
    ],
)
def test_the_entries_tell_their_language(questions, language):
    assert language_of(_entries(*questions)) == language


@pytest.mark.parametrize(("language", "unread"), [("en", 3), ("zh", 1)])
def test_entries_that_the_embedding_does_not_read_are_counted(language, unread):
    reported = []
    questions = ("Where?", "你们几点开门", "Wi-Fi 密码是什么", "Öffnungszeiten", "Где?", "24/7", "")
    _report_scripts(_entries(*questions), EMBEDDINGS[language], reported.append)
    (line,) = reported
    assert line.startswith(f"{unread} of 7 entries are in a script that ")
    _report_scripts(_entries("Where?"), EMBEDDINGS[language], reported.append)
    assert len(reported) == 1


def test_half_of_what_is_asked_chooses_and_half_measures(tmp_path):
    lines = [*(f"m{number},Where?" for number in range(5)), *(f"o{number}," for number in range(4))]
    choosing, measuring = read_messages(_asked(tmp_path, *lines), ENTRIES)
    assert [question.message for question in choosing] == ["m0", "m2", "m4", "o0", "o2"]
    assert [question.answered_by for question in measuring] == ["Where?", "Where?", "", ""]


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (("m,Who?",), "line 2: .* that of no entry"),
        ((" ,Where?",), "line 2: a message is empty"),
        (("m,Where?",), "1 messages that an entry answers and 0 that none does"),
    ],
)
def test_messages_that_are_refused(tmp_path, lines, problem):
    with pytest.raises(TrainingError, match=problem):
        read_messages(_asked(tmp_path, *lines), ENTRIES)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(TrainingError, match="message,question"):
        read_messages(tmp_path / "other.csv", ENTRIES)


@pytest.mark.parametrize("length", [10, 5_000])
def test_the_golden_sample_is_cut_as_its_vector_was(deployment, length):
    text = ("word " * length)[:length].strip()
    knowledge = _knowledge([Entry(text, "book")], np.eye(1, 3, dtype=np.float32))
    publish(knowledge, STEPS, deployment)
    declaration = Declaration.of(deployment.repository.config("smart_reply"))
    request = declaration.probe.golden.request
    assert request["text"] == text
    assert request.get("truncate", False) == (length == 5_000)
