"""What a model's README.md says reaches the pipeline's card; a bad one says nothing."""

import pytest

from converters.sources.model_card import LIMIT_CHARACTERS, card_of

CARD = """---
license: apache-2.0
language: [en, zh]
datasets:
- reviews
- {name: not a text}
tags: [a, b]
limits: It reads English only.
widget: [{text: x}]
model-index:
- name: mood
  results:
  - task: {type: text-classification}
    dataset: {name: 300 reviews, type: reviews}
    metrics:
    - {type: accuracy, value: 0.91}
    - {type: f1, name: macro-F1, value: 0.9}
    - {type: words, value: good}
    - {type: flag, value: true}
---
# Mood
"""


def test_the_fields_that_callers_should_know(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    assert card_of(tmp_path) == {
        "license": "apache-2.0",
        "language": ["en", "zh"],
        "datasets": ["reviews"],
        "limits": "It reads English only.",
        "metrics": [
            {"name": "accuracy", "value": 0.91, "data": "300 reviews"},
            {"name": "macro-F1", "value": 0.9, "data": "300 reviews"},
        ],
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# Mood\n\nlicense: mit\n",
        "---\nlicense: mit\n",  # without an end
        "---\n- a list\n---\n",
        "---\nlicense: [unclosed\n---\n",
        "---\nlicense: !!python/object/apply:os.system ['true']\n---\n",
        "---\nlicense: {a: 1}\nlanguage: 3\nmodel-index: x\n---\n",
        "---\nmodel-index: [{results: [{metrics: 3, dataset: 4}, 5]}, 6]\n---\n",
        "---\n" + "a: " + "[" * 800 + "\n---\n",
        "---\n" + "a: " + "[" * 500_000 + "\n---\n",  # the C loader would end the process
        "---\n" + "{a: " * 100_000 + "\n---\n",
        "---\nlicense: \x00mit\n---\n",
    ],
)
def test_a_card_that_says_nothing_readable(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    assert card_of(tmp_path) == {}


def test_what_is_no_text_file_and_what_is_long(tmp_path):
    assert card_of(tmp_path) == {}
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert card_of(tmp_path) == {}
    (tmp_path / "README.md").write_text(f"---\nlicense: {'x' * 5000}\n---\n")
    assert card_of(tmp_path) == {"license": "x" * LIMIT_CHARACTERS}


def test_anchors_make_no_endless_list_of_metrics(tmp_path):
    """A billion references from a text of a few kilobytes."""
    metrics = "&metrics [" + "{type: f1, value: 1}, " * 1000 + "]"
    results = "&results [" + "{metrics: *metrics}, " * 1000 + "]"
    index = "[" + "{results: *results}, " * 1000 + "]"
    text = f"---\na: {metrics}\nb: {results}\nmodel-index: {index}\n---\n"
    (tmp_path / "README.md").write_text(text)
    assert card_of(tmp_path)["metrics"] == [{"name": "f1", "value": 1}] * 32
