"""The knowledge base of ``smart_reply``: what is in it by default, from which confidence its
answers are given, and how often they are right.

A message is compared with the question of each entry (with the text of a passage). Two thresholds
follow from data: an answer is given as it is from ``confident`` on; from ``possible`` on a passage
may help a language model, or a person.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.knowledge_files import Entry, distinct, read_entries
from training.paraphrases import OUTSIDE, PARAPHRASES
from training.recipe import Metric, TrainingError, required_folder

TOPICS = ("tech_support", "computers", "coding")
SOURCE = "chatterbot-corpus"
# Written by hand: entries, and what is asked of them.
CHINESE_ENTRIES = Path(__file__).with_name("chinese_support.csv")
CHINESE_MESSAGES = Path(__file__).with_name("chinese_messages.csv")
DATA = "held-out paraphrases"
# Of the answers that are given as they are.
LEAST_PRECISION = 0.99
MOST_HELD_BACK = 0.1  # of the right answers: a wrong one costs more than a hand-over
NOWHERE = 2**31  # the rank of an entry that is not there
# [n, width] FP32 of length 1, for n texts.
Embed = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Thresholds:
    """Cosines of a message and an entry."""

    confident: float
    possible: float


@dataclass(frozen=True)
class Question:
    """A message, and the question of the entry that answers it; "" if none does."""

    message: str
    answered_by: str


@dataclass(frozen=True)
class Evaluation:
    """What was measured on messages that chose nothing."""

    thresholds: Thresholds
    metrics: tuple[Metric, ...]


def default_entries(language: str = "en") -> list[Entry]:
    """In English the dialogues by topic of ``chatterbot-corpus``, where the first answer to a
    question counts; in Chinese (``zh``) a shop's, written by hand."""
    if language == "zh":
        return read_entries(CHINESE_ENTRIES)
    folder = required_folder("chatterbot_corpus") / "data" / "english"
    entries = [
        Entry(entry.text, f"{SOURCE}: {topic}", entry.question)
        for topic in TOPICS
        for entry in read_entries(folder / f"{topic}.yml")
    ]
    return distinct(entries)[0]


def questions(language: str = "en") -> tuple[list[Question], list[Question]]:
    """Messages for the default entries of the language, to choose the thresholds with, and other
    ones to measure with."""
    if language == "zh":
        return read_messages(CHINESE_MESSAGES, default_entries(language))
    choosing: list[Question] = []
    measuring: list[Question] = []
    for question, messages in PARAPHRASES.items():
        asked = [Question(message, question) for message in messages]
        choosing += asked[::2]
        measuring += asked[1::2]
    outside = [Question(message, "") for message in OUTSIDE]
    return choosing + outside[::2], measuring + outside[1::2]


def read_messages(path: Path, entries: Sequence[Entry]) -> tuple[list[Question], list[Question]]:
    """What people ask of these entries: a CSV file with ``message`` and ``question`` (empty: no
    entry answers it); every second message chooses the thresholds, the others measure."""
    known = {entry.question for entry in entries if entry.question}
    asked = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            if not {"message", "question"} <= set(rows.fieldnames or ()):
                raise TrainingError(f"{path}: its first line must be message,question")
            for row in rows:
                message, question = (row["message"] or "").strip(), (row["question"] or "").strip()
                if not message or (question and question not in known):
                    raise TrainingError(
                        f"{path} line {rows.line_num}: a message is empty, or its question is that "
                        "of no entry: use the entry's own words, or leave the question empty"
                    )
                asked.append(Question(message, question))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TrainingError(f"{path} cannot be read ({error}): check it") from None
    inside = [question for question in asked if question.answered_by]
    outside = [question for question in asked if not question.answered_by]
    if min(len(inside), len(outside)) < 4:
        raise TrainingError(
            f"{path} has {len(inside)} messages that an entry answers and {len(outside)} that none "
            "does: write at least 4 of each, better 50"
        )
    return inside[::2] + outside[::2], inside[1::2] + outside[1::2]


def evaluate(
    entries: Sequence[Entry],
    vectors: np.ndarray,
    embed: Embed,
    asked: tuple[Sequence[Question], Sequence[Question]],
) -> Evaluation:
    """Thresholds from the first of ``asked``, and the metrics on the second."""
    choosing, measuring = asked
    thresholds = choose_thresholds(*_nearest(choosing, entries, vectors, embed)[:2], choosing)
    best, scores, ranks = _nearest(measuring, entries, vectors, embed)
    is_inside = np.array([bool(question.answered_by) for question in measuring])
    is_given = scores >= thresholds.confident
    is_right = _is_right(best, measuring)
    data = f"{int(is_inside.sum())} {DATA}"
    outside = f"{int((~is_inside).sum())} held-out messages that no entry answers"
    given = f"the {int(is_given.sum())} of {len(measuring)} messages that are answered directly"
    metrics = (
        Metric("recall@1", _share(ranks[is_inside] < 1), data),
        Metric("recall@3", _share(ranks[is_inside] < 3), data),
        Metric("precision", _share(is_right[is_given]), given),
        Metric("answered directly", _share(is_given[is_inside]), data),
        Metric("not answered", _share(~is_given[~is_inside]), outside),
    )
    return Evaluation(thresholds, metrics)


def choose_thresholds(
    best: Sequence[str], scores: np.ndarray, asked: Sequence[Question]
) -> Thresholds:
    """``best`` are the questions of the nearest entries, and ``scores`` their cosines.

    ``confident`` is the highest cosine that holds few right answers back, and no lower than that
    from which on nearly all answers are right; ``possible`` is halfway between it and the
    highest of a message that nothing answers: those that nobody has written down yet lie a little
    higher.
    """
    is_right = _is_right(best, asked)
    confident = 1.0
    for score in np.sort(scores)[::-1]:
        is_given = scores >= score
        if _share(is_right[is_given]) >= LEAST_PRECISION:
            confident = float(score)
    if is_right.any():
        confident = max(confident, float(np.quantile(scores[is_right], MOST_HELD_BACK)))
    outside = scores[[not question.answered_by for question in asked]]
    possible = float(outside.max(initial=0.0))
    # Rounded up: a threshold is shown on the card as it is used.
    confident = min(1.0, float(np.ceil(confident * 100) / 100))
    halfway = float(np.ceil(round((possible + confident) * 50, 6)) / 100)
    return Thresholds(confident, min(confident, halfway))


def _nearest(
    asked: Sequence[Question], entries: Sequence[Entry], vectors: np.ndarray, embed: Embed
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """For each message the question of the nearest entry, its cosine, and the rank of the right one
    (beyond all if there is none)."""
    cosines = embed([question.message for question in asked]) @ vectors.T
    order = np.argsort(-cosines, axis=1, kind="stable")
    names = [entry.question for entry in entries]
    ranks = []
    for question, row in zip(asked, order, strict=True):
        ranked = [names[index] for index in row]
        is_there = question.answered_by and question.answered_by in ranked
        ranks.append(ranked.index(question.answered_by) if is_there else NOWHERE)
    best = [names[row[0]] for row in order]
    return best, cosines.max(axis=1), np.array(ranks)


def _is_right(best: Sequence[str], asked: Sequence[Question]) -> np.ndarray:
    return np.array(
        [
            bool(question.answered_by) and name == question.answered_by
            for name, question in zip(best, asked, strict=True)
        ]
    )


def _share(of: np.ndarray) -> float:
    return round(float(of.mean()), 4) if len(of) else 0.0
