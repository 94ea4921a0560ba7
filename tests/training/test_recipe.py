"""Splits, metrics and cards that every recipe uses."""

import random

import pytest
from sklearn.metrics import f1_score

from converters.sources.model_card import card_of
from training.recipe import (
    Metric,
    ModelCard,
    TrainingError,
    accuracy,
    macro_f1,
    required_folder,
    split,
)

EXAMPLES = {"b": [f"b{number}" for number in range(10)], "a": ["a1", "a2", "a3"]}


def test_a_split_is_stratified_disjoint_and_of_its_seed():
    training, held_out = split(EXAMPLES, 0.2, 1)
    assert sorted(label for _, label in held_out) == ["a", "b", "b"]
    everything = {(text, label) for label, texts in EXAMPLES.items() for text in texts}
    assert {*training, *held_out} == everything and len(training) + len(held_out) == 13
    reordered = {label: texts[::-1] for label, texts in reversed(EXAMPLES.items())}
    assert split(reordered, 0.2, 1) == (training, held_out)
    assert split(EXAMPLES, 0.2, 2) != (training, held_out)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_the_metrics_are_scikit_learns():
    rnd = random.Random(3)  # noqa: S311
    for _ in range(50):
        actual, predicted = ([rnd.choice("abcd") for _ in range(12)] for _ in range(2))
        assert macro_f1(actual, predicted) == pytest.approx(
            f1_score(actual, predicted, average="macro")
        )
        equal = sum(a == p for a, p in zip(actual, predicted, strict=True))
        assert accuracy(actual, predicted) == equal / 12


def test_the_card_that_is_written_is_the_card_that_a_conversion_reads(tmp_path):
    card = ModelCard("Say what.", "Not much: 中文.", "mit", ("zh",), ("reviews",), "someone/base")
    card.save(tmp_path, "mood", [Metric("accuracy", 0.9, "300 held-out reviews")])
    assert card_of(tmp_path) == {
        "license": "mit",
        "language": ["zh"],
        "datasets": ["reviews"],
        "base_model": "someone/base",
        "purpose": "Say what.",
        "limits": "Not much: 中文.",
        "metrics": [{"name": "accuracy", "value": 0.9, "data": "300 held-out reviews"}],
    }


def test_a_missing_package_is_named_with_how_to_install_it():
    with pytest.raises(TrainingError, match=r"no-such-data is not installed: .*pip install"):
        required_folder("no_such_data")
