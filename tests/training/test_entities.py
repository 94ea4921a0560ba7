"""``entity_recognition`` on a tiny model: its data, the folder that is written, the seed."""

import random
from dataclasses import replace

import pytest
from safetensors.numpy import load_file

from converters.sources.huggingface import HuggingFaceFolder
from converters.sources.model_card import card_of
from tidegate.app.paths import Paths
from tidegate.app.train import run
from training import entities
from training.tagged_news import TaggedText, parse, tagged_news
from training.tagger import Tagger, _Example, _spelt, joined, make_tokenizer

NEWS = [
    (
        day,
        TaggedText(f"{place}第{day}天，{person}来了。", ((0, 2, "LOC"), (5 + (day > 9), 8, "PER"))),
    )
    for day in range(1, 31)
    for place, person in (("北京", "江泽民"), ("上海", "李大钊"))
]


def test_no_paragraph_is_on_both_sides_of_the_split():
    training, held_out = entities.split_by_day(tagged_news())
    assert 0.03 < len(held_out) / (len(training) + len(held_out)) < 0.2
    assert not {text.text for text in training} & {text.text for text in held_out}


def test_the_score_counts_exact_spans_of_a_label():
    actual = [((0, 2, "PER"), (3, 5, "LOC")), ()]
    assert entities.span_f1(actual, actual) == 1
    assert entities.span_f1(actual, [((0, 2, "LOC"), (3, 5, "LOC")), ()]) == 0.5
    assert entities.span_f1(actual, [((0, 2, "LOC"), (3, 5, "LOC")), ()], "PER") == 0
    assert entities.span_f1(actual, [((0, 2, "PER"), (3, 5, "LOC")), ((0, 1, "PER"),)]) == 0.8
    assert entities.span_f1([()], [()]) == 1


@pytest.mark.parametrize(
    ("labels", "spans"),
    [
        (["B-PER", "I-PER", "O"], ((0, 2, "PER"),)),
        (["B-PER", "B-PER", "O"], ((0, 1, "PER"), (1, 2, "PER"))),
        (["I-PER", "I-LOC", "I-LOC"], ((0, 1, "PER"), (1, 3, "LOC"))),
        (["O", "O", "I-PER"], ((2, 3, "PER"),)),
    ],
)
def test_labels_are_joined_as_the_served_pipeline_joins_them(labels, spans):
    assert joined(labels, [(0, 1), (1, 2), (2, 3)]) == spans


WORDS = "江/nr  泽民/nr  在/p  美国/ns  ２０/m  世纪/n  民/n"


def test_frequent_words_are_tokens_names_are_characters_and_offsets_are_those_of_the_text():
    texts = [parse(WORDS)] * 4 + [TaggedText("Anna Annas", ())] * 4
    tokenizer = make_tokenizer(texts, 64)
    text = "江\u200b泽民 在美国２０世纪👍"
    fed = tokenizer(text, return_offsets_mapping=True)
    slices = [text[start:end] for start, end in fed["offset_mapping"][1:-1]]
    assert slices == ["江", "泽", "民", " ", "在", "美国", "２", "０", "世纪", "👍"]
    tokens = tokenizer.convert_ids_to_tokens(fed["input_ids"])
    assert tokens[0] == "[CLS]" and tokens[-2:] == ["[UNK]", "[SEP]"] and tokens[7:9] == ["2", "0"]


def test_a_word_that_is_spelt_has_the_labels_of_its_characters():
    example = _Example([2, 10, 11, 12, 3], [-100, 1, 2, 0, -100], [-100, 4, 5, 6, -100])
    spelt = _spelt(example, {10: [20, 21], 12: [22, 23]}, 1.0, random.Random(0))  # noqa: S311
    assert spelt.ids == [2, 20, 21, 11, 22, 23, 3]
    assert spelt.labels == [-100, 1, 2, 2, 0, 0, -100]
    assert spelt.words == [-100, 4, 5, 5, 6, 7, -100]
    assert _spelt(example, {10: [20, 21]}, 0.0, random.Random(0)) == example  # noqa: S311


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A few sentences, and a model that is trained for a moment."""
    monkeypatch.setattr(entities, "tagged_news", lambda: NEWS)
    monkeypatch.setattr(entities, "ENGLISH", 100)
    monkeypatch.setattr(entities, "ENGLISH_HELD_OUT", 20)
    sizes = {"hidden": 16, "layers": 1, "heads": 2, "inner": 16, "max_tokens": 64}
    monkeypatch.setattr(entities, "SETTINGS", replace(entities.SETTINGS, epochs=1, **sizes))
    return tmp_path


def test_the_same_seed_trains_the_same_model(tiny):
    lines = []
    first, again, other = (
        run("entity_recognition", seed, Paths(tiny / home), lines.append, publish=False)
        for seed, home in ((1, "a"), (1, "b"), (2, "c"))
    )
    assert first.metrics == again.metrics
    weights = [load_file(one.folder / "model.safetensors") for one in (first, again, other)]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    assert any((weights[0][name] != weights[2][name]).any() for name in weights[0])
    assert any(line.startswith("entity_recognition: epoch 1 of 1") for line in lines)


def test_the_folder_is_one_that_convert_takes(tiny):
    result = run("entity_recognition", 0, Paths(tiny), lambda line: None, publish=False)
    folder = HuggingFaceFolder.open(result.folder)
    folder.require_head("token-classification", "AutoModelForTokenClassification")
    assert folder.labels()[:3] == ("O", "B-PER", "I-PER")
    assert folder.tokenizer().max_tokens == 64
    metrics = card_of(result.folder)["metrics"]
    assert [metric["name"] for metric in metrics[:2]] == ["F1", "F1 of PER"]
    generated = [metric for metric in metrics if metric["data"].startswith("English")]
    assert len(generated) == 2 * (1 + len(entities.LABELS))
    assert all(entities.GENERATED in metric["data"] for metric in generated)


def test_a_model_learns_what_it_is_shown():
    settings = replace(
        entities.SETTINGS, epochs=60, hidden=32, inner=32, tokens_per_batch=256, masked=0, spelt=0
    )
    texts = [text for _, text in NEWS]
    tokenizer = make_tokenizer(texts, 64)
    with entities.reproducible(0):
        model = Tagger(tokenizer, entities.LABELS, settings, 0)
        model.train(texts, settings, lambda line: None)
    predicted = model.predict([text.text for text in texts])
    assert entities.span_f1([text.entities for text in texts], predicted) > 0.95
