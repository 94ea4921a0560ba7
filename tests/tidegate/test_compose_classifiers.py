"""Which languages a classifier reads is what its card says."""

from types import SimpleNamespace

import pytest

from tidegate.app import compose_classifiers
from tidegate.app.compose_classifiers import languages_read


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ({"language": ["zh", "en"]}, ["zh", "en"]),
        ({"language": "zh-CN"}, ["zh"]),
        ({}, ["en"]),
        ({"language": []}, ["en"]),
    ],
)
def test_the_card_says_what_a_classifier_reads(monkeypatch, said, read):
    cards = {"topic_classification": said, "sentiment": {"language": ["de"]}}
    monkeypatch.setattr(
        compose_classifiers, "_schema", lambda _, name: SimpleNamespace(card=cards[name])
    )
    assert languages_read(None) == {"topic_classification": read, "sentiment": ["de"]}
