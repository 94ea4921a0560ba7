"""What a text model's folder defines about labels, scores and padding, and what is refused."""

import json
from pathlib import Path

import pytest

from converters.errors import SourceRefused
from converters.sources.huggingface import HuggingFaceFolder
from converters.task import ConversionRequest
from converters.tasks.text_classification.task import TextClassification
from converters.tasks.token_classification.task import TokenClassification
from tests.tiny_models import save_classifier, save_tagger


def _classifier(folder, architecture="bert", **config) -> TextClassification:
    return TextClassification(
        ConversionRequest("x", str(save_classifier(architecture, folder, **config)))
    )


@pytest.mark.parametrize(
    ("config", "function"),
    [
        ({}, "softmax"),
        ({"labels": ("yes",)}, "sigmoid"),
        ({"problem_type": "multi_label_classification"}, "sigmoid"),
        ({"problem_type": "regression"}, "none"),
        ({"problem_type": "regression", "labels": ("stars",)}, "none"),
    ],
)
def test_scores_are_computed_as_transformers_computes_them(tmp_path, config, function):
    from transformers import pipeline

    from converters.proof.scores import FUNCTIONS
    from ensembles.steps.top_labels import TopLabels

    task = _classifier(tmp_path / "m", **config)
    metadata = task.metadata()
    assert metadata["function"] == function
    original = pipeline("text-classification", str(tmp_path / "m"), top_k=None, device="cpu")
    text = "Where is my parcel?"
    expected = {entry["label"]: entry["score"] for entry in original([text])[0]}
    inputs = original.tokenizer(text, return_tensors="pt")
    logits = original.model(**inputs).logits.detach().numpy()
    names, scores = TopLabels(metadata["labels"], len(metadata["labels"]), function)(logits)
    actual = {name.decode(): score for name, score in zip(names[0], scores[0], strict=True)}
    assert actual == pytest.approx(expected, abs=1e-6)
    proof_scores = FUNCTIONS[function](logits)[0]
    assert dict(zip(metadata["labels"], proof_scores, strict=True)) == pytest.approx(
        expected, abs=1e-6
    )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("a", "b\nc", "d"), "label 1 .* one-line"),
        (("a", "b\u2028c", "d"), "label 1 .* one-line"),
        (("a", "", "d"), "label 1 .* one-line"),
        (("a", "b", "a"), "two labels .* have the same name"),
    ],
)
def test_ambiguous_labels_are_refused(tmp_path, labels, message):
    for task, save in (
        (TextClassification, save_classifier),
        (TokenClassification, save_tagger),
    ):
        folder = save("bert", tmp_path / task.name, labels=labels)
        with pytest.raises(SourceRefused, match=message):
            task(ConversionRequest("x", str(folder))).source.labels()


@pytest.mark.parametrize("id2label", [{"one": "a"}, ["a", "b"], {"0": "a", "2": "b"}])
def test_labels_that_are_not_numbered_are_refused(tmp_path, id2label):
    task = _classifier(tmp_path / "m")
    task.source.config["id2label"] = id2label
    with pytest.raises(SourceRefused, match="id2label"):
        task.source.labels()


def test_a_decoder_must_know_its_padding(tmp_path):
    with pytest.raises(SourceRefused, match=r"cannot process two texts at once .* pad_token_id"):
        _classifier(tmp_path / "a", "gpt2").metadata()
    metadata = _classifier(tmp_path / "b", "gpt2", pad_token_id=1).metadata()
    assert (metadata["pad_id"], metadata["buckets"][-1]) == (1, 64)


def _edit(path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_token_types_other_than_zero_are_refused(tmp_path):
    folder = save_classifier("bert", tmp_path / "m")
    _edit(
        folder / "tokenizer_config.json",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    assert (
        TextClassification(ConversionRequest("x", str(folder))).tokenizer.inputs[1]
        == "token_type_ids"
    )
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    for piece in tokenizer["post_processor"]["single"]:
        for part in piece.values():
            part["type_id"] = 1
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(SourceRefused, match="token types other than 0"):
        TextClassification(ConversionRequest("x", str(folder))).metadata()


def test_a_tokenizer_with_other_inputs_is_refused():
    import torch

    from converters.sources.token_model import takes_token_types

    with pytest.raises(SourceRefused, match="also gives it bbox"):
        takes_token_types(torch.nn.Identity(), ("input_ids", "bbox"))


def test_every_file_that_a_tokenizer_is_saved_in_belongs_to_the_source(tmp_path):
    from transformers import AutoTokenizer

    folder = save_classifier("bert", tmp_path / "m")
    before = set(HuggingFaceFolder.open(folder).files())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    saved = {folder / Path(file).relative_to(folder) for file in tokenizer.save_pretrained(folder)}
    written = {path for path in folder.rglob("*.jinja") if path.is_file()}
    assert len(written) == 2
    assert written | {path for path in saved if path.is_file()} | before == set(
        HuggingFaceFolder.open(folder).files()
    )
