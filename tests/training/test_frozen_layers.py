"""Layers that are not trained, computed once: the upper layers go on from them as in the whole."""

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from tests.tiny_models import save_encoder
from training.frozen_layers import FrozenLayers, fed

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


@pytest.mark.parametrize("layers", [1, 2])
def test_the_upper_layers_answer_as_the_whole_encoder(encoder, tokenizer, layers):
    with torch.no_grad():
        whole = encoder(**tokenizer(TEXTS, padding=True, return_tensors="pt"))
        frozen = FrozenLayers(encoder, layers)
        outputs = frozen.outputs(TEXTS, tokenizer, 64, lambda line: None)
        with frozen.skipped():
            upper = encoder(**fed([outputs[text] for text in TEXTS]))
    apart = (whole.pooler_output[0] - whole.pooler_output[1]).abs().max()
    assert (upper.pooler_output - whole.pooler_output).abs().max() < 0.1 * apart  # FP16 rounds


def test_the_encoder_is_whole_again_afterwards(encoder, tokenizer):
    before = dict(encoder.named_parameters())
    frozen = FrozenLayers(encoder, 2)
    frozen.outputs(TEXTS, tokenizer, 64, lambda line: None)
    with pytest.raises(KeyError), frozen.skipped():
        assert len(encoder.encoder.layer) == 1
        raise KeyError
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
