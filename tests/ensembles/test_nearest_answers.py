"""The step of a knowledge base: which answers it gives, and of which it is not sure."""

import numpy as np
import pytest

from ensembles.steps import nearest_answers, route_text
from ensembles.steps.nearest_answers import NearestAnswers, language_of

ENTRIES = [
    {"text": "Restart it.", "question": "It hangs", "source": "faq#1"},
    {"text": "Restart it.", "question": "It is frozen", "source": "faq#1"},
    {"text": "Charge it.", "question": "It is off", "source": "faq#2"},
    {"text": "Ünïcödé 答案", "question": "", "source": "book"},
]
UNKNOWN = {"en": "I don't know.", "zh": "我不知道。"}
KNOWLEDGE = {"entries": ENTRIES, "confident": 0.9, "possible": 0.5, "unknown": UNKNOWN}
VECTORS = np.array([[1, 0, 0], [0.8, 0.6, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32)


@pytest.fixture
def answers():
    step = NearestAnswers(VECTORS, KNOWLEDGE, 3)

    def answer(vectors, texts=()):
        return step(vectors, texts or ["hello"] * len(vectors))

    return answer


def _row(outputs, row=0):
    def text(name):
        return [value.decode() for value in outputs[name][row]]

    return {
        "reply": text("reply")[0],
        "source": text("source")[0],
        "from": text("from")[0],
        "hand_over": bool(outputs["hand_over"][row, 0]),
        "confidence": round(float(outputs["confidence"][row, 0]), 5),
        "passages": text("passage_text")[: outputs["passage_count"][row, 0]],
    }


def test_a_sure_answer_has_its_source(answers):
    row = _row(answers(VECTORS[2:3]))
    assert row == {
        "reply": "Charge it.",
        "source": "faq#2",
        "from": "knowledge_base",
        "hand_over": False,
        "confidence": 1.0,
        "passages": ["Charge it.", "Restart it."],
    }


def test_what_is_only_possible_is_a_passage_and_no_answer(answers):
    row = _row(answers(np.array([[0, 0.6, 0.8]], dtype=np.float32)))
    assert row["reply"] == "I don't know." and row["hand_over"] and row["source"] == ""
    assert row["from"] == "none" and row["confidence"] == pytest.approx(0.8)
    assert row["passages"] == ["Ünïcödé 答案", "Charge it."]


def test_nothing_near_has_no_passages(answers):
    row = _row(answers(np.array([[-0.5, -0.5, 0.1]], dtype=np.float32)))
    assert (row["from"], row["hand_over"], row["passages"]) == ("none", True, [])


def test_what_is_not_known_is_said_in_the_language_of_the_message(answers):
    texts = ["Where is it?", "它在哪里?", "Wi-Fi 密码是什么"]
    outputs = answers(np.array([[-0.5, -0.5, 0.1]] * 3, dtype=np.float32), texts)
    replies = [reply.decode() for reply in outputs["reply"][:, 0]]
    assert replies == [UNKNOWN["en"], UNKNOWN["zh"], UNKNOWN["zh"]]


@pytest.mark.parametrize(
    ("language", "spoken"), [("zh", "zh"), ("en", "en"), ("fr", "zh"), ("", "zh")]
)
def test_the_request_may_tell_its_language(language, spoken):
    step = NearestAnswers(VECTORS, KNOWLEDGE, 3)
    outputs = step(np.array([[-0.5, -0.5, 0.1]], dtype=np.float32), ["它在哪里?"], language)
    assert outputs["reply"][0, 0].decode() == UNKNOWN[spoken]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("我的快递在哪里", "zh"),
        ("我的iPhone15坏了", "zh"),
        ("訂單什麼時候出貨", "zh"),
        ("I bought it in 北京 last week", "en"),
        ("Hello\uff0c我想return这个order", "zh"),
        ("東京駅はどこですか", "en"),
        ("안녕하세요", "en"),
        ("👍", "en"),
        ("12345", "en"),
        ("", "en"),
    ],
)
def test_the_language_of_a_message(text, language):
    assert language_of(text) == language


def test_a_character_weighs_as_much_as_where_a_message_is_routed():
    """A step imports no other one, so both have these constants."""
    for name in ("HAN_WEIGHT", "GRAMMAR", "GRAMMAR_WEIGHT"):
        assert getattr(nearest_answers, name) == getattr(route_text, name)


def test_entries_that_say_the_same_are_one_passage(answers):
    row = _row(answers(np.array([[0.8, 0.6, 0]], dtype=np.float32)))
    assert row["passages"] == ["Restart it.", "Charge it."]


def test_rows_do_not_depend_on_each_other(answers):
    messages = np.concatenate([VECTORS, [[0, 0.6, 0.8]]]).astype(np.float32)
    together = answers(messages)
    for row in range(len(messages)):
        assert _row(together, row) == _row(answers(messages[row : row + 1]))
    assert together["passage_score"].dtype == np.float32
    assert together["passage_text"].shape == (5, 3)


@pytest.mark.parametrize(
    ("vectors", "problem"),
    [
        (np.ones((1, 4), dtype=np.float32), r"returned \(1, 4\), not \[n, 3\]"),
        (np.array([[np.nan, 0, 0]], dtype=np.float32), "not finite"),
    ],
)
def test_wrong_vectors(answers, vectors, problem):
    with pytest.raises(ValueError, match=problem):
        answers(vectors)


def test_a_knowledge_base_whose_files_do_not_match():
    with pytest.raises(ValueError, match="4 entries have vectors of shape"):
        NearestAnswers(VECTORS[:2], KNOWLEDGE, 3)
    with pytest.raises(ValueError, match="0 entries"):
        NearestAnswers(VECTORS[:0], {**KNOWLEDGE, "entries": []}, 3)
