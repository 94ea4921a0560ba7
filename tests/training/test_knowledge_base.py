"""The default knowledge base, and thresholds that follow from data."""

import re

import numpy as np
import pytest

from training.knowledge_base import (
    Question,
    Thresholds,
    choose_thresholds,
    default_entries,
    evaluate,
    questions,
)
from training.knowledge_files import Entry
from training.paraphrases import OUTSIDE, PARAPHRASES


def test_the_default_entries_are_distinct_and_have_their_source():
    entries = default_entries()
    assert len({entry.question for entry in entries}) == len(entries) > 100
    sources = {entry.source for entry in entries}
    assert sources == {f"chatterbot-corpus: {t}" for t in ("tech_support", "computers", "coding")}


@pytest.mark.parametrize(("language", "asked"), [("en", 30), ("zh", 36)])
def test_what_is_measured_was_not_used_to_choose(language, asked):
    choosing, measuring = questions(language)
    known = {entry.question for entry in default_entries(language)}
    chosen = {question.answered_by for question in choosing} - {""}
    assert chosen <= known and len(chosen) >= asked - 10
    assert len([question for question in measuring if question.answered_by]) >= asked
    messages = [question.message for question in (*choosing, *measuring)]
    assert len(set(messages)) == len(messages)
    assert not {_words(message) for message in messages} & {_words(question) for question in known}
    assert len([question for question in measuring if not question.answered_by]) >= 20
    assert len(OUTSIDE) == 60 and set(PARAPHRASES) <= {
        entry.question for entry in default_entries()
    }


def _words(text):
    return " ".join(re.findall(r"\w+", text.casefold()))


def _asked(*answered_by):
    return [Question(f"message {index}", name) for index, name in enumerate(answered_by)]


def test_an_answer_is_given_from_where_nearly_all_are_right():
    asked = _asked("a", "b", "c", "")
    best = ["a", "b", "x", "a"]
    thresholds = choose_thresholds(best, np.array([0.9, 0.804, 0.7, 0.6]), asked)
    assert thresholds == Thresholds(confident=0.82, possible=0.71)


def test_nothing_is_given_where_the_best_is_wrong():
    thresholds = choose_thresholds(["x", "b"], np.array([0.9, 0.8]), _asked("a", ""))
    assert thresholds == Thresholds(confident=1.0, possible=0.9)


def test_the_possible_is_never_above_the_confident():
    thresholds = choose_thresholds(["a", "x"], np.array([0.5, 0.499]), _asked("a", ""))
    assert thresholds.possible <= thresholds.confident


def test_recall_precision_and_what_is_not_answered():
    entries = [Entry("1", "s", "a"), Entry("2", "s", "b"), Entry("3", "s", "c")]
    vectors = np.eye(3, dtype=np.float32)
    choosing, measuring = _asked("a", ""), _asked("a", "b", "")
    sent = {
        "message 0": [1, 0, 0],
        "message 1": [0.8, 0.6, 0],
        "message 2": [0, 0, 0.3],
    }

    def embed(texts):
        return np.array([sent[text] for text in texts], dtype=np.float32)

    evaluation = evaluate(entries, vectors, embed, (choosing, measuring))
    measured = {metric.name: metric.value for metric in evaluation.metrics}
    assert evaluation.thresholds.confident == 1.0
    assert measured["recall@1"] == 0.5 and measured["recall@3"] == 1.0
    assert measured["precision"] == 1.0 and measured["not answered"] == 1.0


def test_an_entry_that_is_not_there_is_never_found():
    entries = [Entry("1", "s", "a")]
    asked = (_asked("a", ""), _asked("b", ""))
    evaluation = evaluate(
        entries, np.ones((1, 1), np.float32), lambda t: np.ones((len(t), 1), np.float32), asked
    )
    assert [metric.value for metric in evaluation.metrics[:2]] == [0.0, 0.0]
