"""A language model's declaration: what the gateway reads of it, and what its engine takes."""

import json
import sys
from pathlib import Path

import pytest

from ensembles.causal_lm import KV_CACHE_TOKENS, MAX_NUM_SEQS, SCHEMA_KEYWORDS, TAKES, declare
from gateway.api.openai.structured_output import check_schema
from gateway.errors import InvalidRequest
from gateway.models.text_binding import Binding
from modelspec.golden import Golden
from modelspec.hardware import VLLM

sys.path.append(str(Path(__file__).parents[2] / "serving" / "backends" / "openvino_genai"))

import lm_sampling
import lm_settings

VALUES = {
    "stop": ["x"],
    "stop_token_ids": [1],
    "ignore_eos": True,
    "structured_outputs": {"choice": ["a"]},
}
GOLDEN = Golden({"text_input": "a"}, {"text_output": ["b"]}, 0.0)


def model(**changed):
    metadata = {
        "architecture": "llama",
        "context_length": 2048,
        "template": "{{ messages }}",
        "variables": {"eos_token": "<|im_end|>"},
        "markers": ["<|im_end|>"],
    }
    return declare("talk", metadata | changed, GOLDEN, {}).models[-1]


def binding(spec, route):
    inputs, outputs = ({one.name: one for one in side} for side in (spec.inputs, spec.outputs))
    return Binding.compile(spec.endpoint_schema.openai[route], inputs, outputs)


@pytest.mark.parametrize("name", sorted(TAKES))
def test_the_engine_takes_what_is_declared(name):
    lm_sampling.parse(json.dumps({name: VALUES.get(name, 1)}))


def test_the_gateway_reads_the_binding():
    chat = binding(model(), "chat")
    assert chat.takes == frozenset(TAKES)
    assert "logit_bias" not in chat.takes
    assert chat.tools.parser == "hermes"
    assert chat.forbidden == ("<|im_end|>",)
    assert chat.logprobs == "logprobs"
    assert binding(model(), "completions").takes == chat.takes


def test_the_gateway_refuses_by_name_what_the_engine_does_not_keep():
    engine = set(lm_sampling._KEYWORDS) | set(lm_sampling._ANNOTATIONS)
    assert set(SCHEMA_KEYWORDS) == engine
    chat = binding(model(), "chat")
    check_schema({"type": "string", "maxLength": 3}, "schema", chat)
    with pytest.raises(InvalidRequest, match="oneOf"):
        check_schema({"oneOf": [{"type": "string"}]}, "schema", chat)
    assert chat.max_logprobs == 0
    with pytest.raises(lm_sampling.Refused, match="logprobs"):
        lm_sampling.parse(json.dumps({"logprobs": 1}))


def test_a_model_without_a_template_has_no_chat():
    assert set(model(template="").endpoint_schema.openai) == {"completions", "tokenize"}


def test_what_the_engine_takes_at_a_time_is_what_its_settings_are_by_default():
    settings = lm_settings.Settings()
    assert settings.max_running == MAX_NUM_SEQS
    assert settings.num_kv_blocks * lm_settings.BLOCK == KV_CACHE_TOKENS
    assert model().parameters == {
        "tidegate.max_num_seqs": "64",
        "tidegate.kv_cache_tokens": "8192",
    }
    assert model(backend=VLLM).parameters == {"tidegate.max_num_seqs": "256"}


def test_vllm_takes_all_that_the_gateway_knows():
    spec = model(backend=VLLM)
    assert spec.backend == VLLM
    assert "logit_bias" in binding(spec, "chat").takes
