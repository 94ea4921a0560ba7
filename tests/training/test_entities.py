"""``entity_recognition`` on a tiny model: its data, the folder that is written, the seed."""

from dataclasses import replace

import pytest
from safetensors.numpy import load_file

from converters.sources.huggingface import HuggingFaceFolder
from converters.sources.model_card import card_of
from tests.tiny_models import save_encoder
from tidegate.app.paths import Paths
from tidegate.app.train import run
from training import entities
from training.generated_english import hand_written
from training.tagged_news import TaggedText, tagged_news
from training.tagger import Settings, Tagger, joined

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


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A few sentences, and a model that is trained for a moment."""
    monkeypatch.setattr(entities, "tagged_news", lambda: NEWS)
    monkeypatch.setattr(entities, "ENGLISH", 100)
    monkeypatch.setattr(entities, "ENGLISH_HELD_OUT", 20)
    monkeypatch.setattr(
        entities.multilingual_e5,
        "save",
        lambda path, folder, layers, words, dropout: save_encoder(
            "bert", folder, num_hidden_layers=2
        ),
    )
    monkeypatch.setattr(
        entities, "SETTINGS", replace(entities.SETTINGS, frozen_layers=1, longest=60)
    )
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
    samples = (result.folder / "samples.txt").read_text(encoding="utf-8").splitlines()
    written = [text.text for name in ("chinese", "english") for text in hand_written(name)]
    assert samples[: len(written)] == written and len(samples) > len(written) + 20
    assert all(line.strip() for line in samples)


def test_a_model_learns_what_it_is_shown_and_what_is_frozen_stays(tmp_path):
    encoder = save_encoder("bert", tmp_path / "encoder", num_hidden_layers=2)
    texts = [
        TaggedText(f"the {word} sat in london", ((4, 4 + len(word), "PER"),))
        for word in ("cat", "dog", "man", "king")
    ]
    settings = Settings(60, 3e-3, tokens_per_batch=64, frozen_layers=1, masked=0)
    with entities.reproducible(0):
        model = Tagger(encoder, entities.LABELS, 0)
        model.train(texts, settings, lambda line: None)
    predicted = model.predict([text.text for text in texts])
    assert entities.span_f1([text.entities for text in texts], predicted) > 0.95
    model.save(tmp_path / "trained")
    old, new = (load_file(tmp_path / name / "model.safetensors") for name in ("encoder", "trained"))
    changed = {name for name in new if (old.get(name.removeprefix("bert."), 0) != new[name]).any()}
    assert any("layer.1." in name for name in changed)
    assert not any("embeddings" in name or "layer.0." in name for name in changed)
