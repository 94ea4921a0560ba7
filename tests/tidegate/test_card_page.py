"""docs/pipelines.md is what was recorded in docs/pipelines.json, and says what a card must."""

import json

import pytest

from tests.running import ROOT
from tidegate.app.compose import COMPOSED
from tidegate.app.task_registry import KNOWN
from tidegate.app.train import RECIPES
from tidegate.card_page import RECORDED, page, recorded

DOCUMENT = json.loads(RECORDED.read_text(encoding="utf-8"))
CARDS = {card["name"]: card for card in DOCUMENT["pipelines"]}
# identity_fp32 is there to be measured, and has no model.
OURS = {*KNOWN, *RECIPES, *COMPOSED, "smart_reply"} - {"identity_fp32"}


def test_the_page_is_current():
    assert (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8") == page(DOCUMENT), (
        "run `make docs`"
    )


def test_every_pipeline_of_ours_is_on_it():
    assert set(CARDS) == OURS


@pytest.mark.parametrize("name", sorted(CARDS))
def test_each_says_what_it_is_for_its_limits_its_licence_and_its_latency(name):
    card = CARDS[name]
    assert card["purpose"] and card["card"]["limits"] and card["card"]["license"]
    assert card["latency"]["p50_ms"] <= card["latency"]["p99_ms"] and card["latency"]["machine"]
    assert "datasets" in card["card"] or "members" in card["card"]


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_each_trained_one_says_what_was_measured_on_what(name):
    assert all(metric["data"] for metric in CARDS[name]["card"]["metrics"])


def test_an_example_is_not_recorded():
    card = {"name": "x", "example": {"image": "..."}, "latency": None}
    assert recorded({"pipelines": [card]})["pipelines"] == [{"name": "x", "latency": None}]
