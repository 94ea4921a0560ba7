"""Layers that are not trained, computed once: the upper layers go on from them as in the whole, in
FP32 as well as in BF16, which a processor without units for it computes too, only slowly."""

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from tests.tiny_models import save_classifier, save_encoder
from training import frozen_layers
from training.frozen_layers import FrozenLayers, padded

TEXTS = ["good words", "a room with a view and a long day at the sea", "words", "bad food again"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_encoder("bert", tmp_path_factory.mktemp("frozen") / "encoder", num_hidden_layers=3)


@pytest.fixture
def encoder(folder):
    return AutoModel.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.fixture
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(params=[False, True], ids=["FP32", "BF16"])
def has_bf16(request, monkeypatch):
    monkeypatch.setattr(frozen_layers, "_has_bf16_units", lambda: request.param)
    return request.param


@pytest.mark.parametrize("layers", [1, 2])
def test_the_upper_layers_answer_as_the_whole_encoder(encoder, tokenizer, layers, has_bf16):
    with torch.no_grad():
        whole = encoder(**tokenizer(TEXTS, padding=True, return_tensors="pt"))
        frozen = FrozenLayers(encoder, layers)
        outputs = frozen.outputs(TEXTS, tokenizer, 64, lambda line: None)
        states, mask = padded([outputs[text] for text in TEXTS])
        with frozen.skipped():
            upper = encoder(inputs_embeds=states, attention_mask=mask)
    assert states.dtype == torch.float32 and mask.sum() == sum(map(len, outputs.values()))
    apart = (whole.pooler_output[0] - whole.pooler_output[1]).abs().max()
    closeness = 0.3 if has_bf16 else 0.01
    assert (upper.pooler_output - whole.pooler_output).abs().max() < closeness * apart


def test_logits_from_the_states_are_those_of_the_whole_model(tmp_path, has_bf16):
    folder = save_classifier("bert", tmp_path / "classifier", ("bad", "good"), num_hidden_layers=3)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    fed = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    ids, mask = fed["input_ids"], fed["attention_mask"]
    with torch.no_grad():
        whole = model(input_ids=ids, attention_mask=mask).logits
    frozen = FrozenLayers(model.base_model, 2)
    with frozen.skipped():
        logits = frozen.logits(model, frozen.states(ids, mask), mask)
        logits.sum().backward()
    assert logits.dtype == torch.float32
    closeness = 0.02 if has_bf16 else 1e-5
    assert (logits - whole).abs().max() < closeness * whole.abs().max()
    parameters = dict(model.named_parameters())
    trained = {name for name, one in parameters.items() if one.grad is not None}
    assert "classifier.weight" in trained and any("layer.2." in name for name in trained)
    assert not any("embeddings" in name or "layer.1." in name for name in trained)
    assert all(parameters[name].dtype == torch.float32 for name in parameters)


def test_the_encoder_is_whole_again_afterwards(encoder, tokenizer):
    encoder.set_attn_implementation("sdpa")
    before = dict(encoder.named_parameters())
    frozen = FrozenLayers(encoder, 2)
    frozen.outputs(TEXTS, tokenizer, 64, lambda line: None)
    with pytest.raises(KeyError), frozen.skipped():
        assert len(encoder.encoder.layer) == 1
        assert encoder.config._attn_implementation == "eager"
        raise KeyError
    assert encoder.config._attn_implementation == "sdpa"
    after = dict(encoder.named_parameters())
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)
    trained = {name for name, parameter in after.items() if parameter.requires_grad}
    assert trained and not any(
        "embeddings" in name or "layer.0." in name or "layer.1." in name for name in trained
    )


def test_no_more_tokens_than_asked_for_are_read_and_every_text_is_reported(encoder, tokenizer):
    lines = []
    outputs = FrozenLayers(encoder, 1).outputs(TEXTS, tokenizer, 4, lines.append)
    assert outputs.keys() == set(TEXTS)
    assert max(len(output) for output in outputs.values()) == 4
    assert lines == ["1 frozen layers: 1 of 1 batches"]
