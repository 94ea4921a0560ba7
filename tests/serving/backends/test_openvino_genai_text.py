"""The openvino_genai backend's text pieces and sampling parameters."""

import json
import sys
from pathlib import Path

import pytest

from converters.tasks.causal_lm.openvino_engine import PROPERTIES

sys.path.append(str(Path(__file__).parents[3] / "serving" / "backends" / "openvino_genai"))

import lm_sampling
import lm_schema
import lm_tokens
from lm_settings import ModelRefused, Settings
from lm_text import TextPieces

TEXT = "Zoë said: 日本 😀 STOP and more"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("stops", [(), ("STOP",), ("nope", "more!"), ("OP and", "STOP")])
def test_every_cut_gives_the_same_text(size, stops):
    raw = TEXT.encode()
    pieces = TextPieces(stops)
    sent = [pieces.add(raw[at : at + size]) for at in range(0, len(raw), size)]
    sent.append(pieces.end())
    positions = [TEXT.index(stop) for stop in stops if stop in TEXT]
    assert "".join(sent) == TEXT[: min(positions, default=None)]
    assert pieces.stopped == bool(positions)
    assert "\ufffd" not in "".join(sent)


def test_the_stop_string_is_kept_if_asked_and_not_searched_before_min_tokens():
    assert TextPieces(["b"], include_stop=True).add(b"abc") == "ab"
    pieces = TextPieces(["b"], min_tokens=1)
    assert pieces.add(b"ab") + pieces.add(b"cb") == "abc"


def test_bytes_that_are_no_text_end_as_a_replacement():
    pieces = TextPieces(())
    assert pieces.add(b"a\xe6\x97") == "a"
    assert pieces.end() == "\ufffd"


def test_numbers_may_be_strings():
    sampling = lm_sampling.parse('{"temperature": "0.5", "max_tokens": "7", "stop": "x"}')
    assert (sampling.temperature, sampling.max_tokens, sampling.stop) == (0.5, 7, ("x",))


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"bad_words": ["a"]}, "bad_words"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"logprobs": 5}, "logprobs"),
        ({"temperature": True}, "temperature"),
        ({"temperature": "nan"}, "temperature"),
        ({"top_k": 1.5}, "top_k"),
        ({"unheard_of": 1}, "unheard_of"),
        ({"structured_outputs": '{"structural_tag": {}}'}, "structural_tag"),
        ({"structured_outputs": '{"json": "no schema"}'}, "json"),
        ({"structured_outputs": {"structural_tag": {}}}, "structural_tag"),
        ({"structured_outputs": '{"regex": "(["}'}, "regex"),
        ({"structured_outputs": '{"regex": "(?=a)b"}'}, "regex"),
        ({"structured_outputs": {"json": {"type": "objekt"}}}, "type"),
        ({"structured_outputs": {"json": {"items": {"multipleOf": 2}}}}, "multipleOf"),
        ({"structured_outputs": {"json": {"$ref": "https://other/x"}}}, "ref"),
        ({"structured_outputs": {"json": {"pattern": "\\bx"}}}, "pattern"),
        ({"guided_json": {}}, "guided_json"),
        ({"n": 2, "temperature": 0}, "n must"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(parameters, named):
    with pytest.raises(lm_sampling.Refused, match=named):
        lm_sampling.parse(json.dumps(parameters))


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"minimum": 5}, "minimum"),
        ({"type": "number", "minimum": 0}, "minimum"),
        ({"type": "string", "anyOf": [{"const": "q"}]}, "beside 'anyOf'"),
        ({"type": "integer", "const": "q"}, "beside 'const'"),
        ({"type": "string", "pattern": "[a-z]*", "maxLength": 3}, "pattern"),
        ({"type": "string", "pattern": "(([a-z]{0,1000}){0,1000}){0,1000}"}, "pattern"),
        ({"type": "string", "format": "nonsense"}, "format"),
        ({"type": "object", "required": ["a"]}, "required 'a'"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "ref"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, "allOf"),
    ],
)
def test_a_schema_that_the_engine_would_only_keep_in_part_is_refused(schema, named):
    with pytest.raises(lm_sampling.Refused, match=named):
        lm_sampling.parse(json.dumps({"structured_outputs": {"json": schema}}))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "enum": ["a", "b"], "title": "One"},
        {"type": ["string", "null"], "maxLength": 3},
        {"type": "string", "format": "date-time"},
        {
            "allOf": [{"$ref": "#/$defs/a"}],
            "$defs": {
                "a": {"$ref": "#/$defs/b/$defs/c"},
                "b": {"type": "null", "$defs": {"c": {"type": "integer", "minimum": 1}}},
            },
        },
        {
            "type": "object",
            "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
            "required": ["next"],
        },
    ],
)
def test_schemas_that_the_engine_keeps(schema):
    parsed = lm_sampling.parse(json.dumps({"structured_outputs": {"json": schema}}))
    assert parsed.structure == ("json_schema", json.dumps(lm_schema.writable(schema)))


def test_an_adapter_is_refused_without_a_list():
    with pytest.raises(lm_sampling.Refused, match="no such adapter"):
        lm_sampling.parse('{"lora_name": "other"}')


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"threads": "2"}', '{"treads": 2}', '{"context_length": 100000}']
)
def test_settings_that_cannot_be_are_refused(tmp_path, text):
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(ModelRefused):
        Settings.read(tmp_path)


def test_settings_may_name_more_end_tokens_and_a_normalization(tmp_path):
    (tmp_path / "model.json").write_text('{"stop_token_ids": [7, 9], "normalize_nfc": true}')
    settings = Settings.read(tmp_path)
    assert (settings.stop_token_ids, settings.normalize_nfc) == ([7, 9], True)


@pytest.mark.parametrize("value", ["7", '["7"]', "[-1]", "[true]", '{"7": 1}'])
def test_end_tokens_must_be_ids(tmp_path, value):
    (tmp_path / "model.json").write_text(f'{{"stop_token_ids": {value}}}')
    with pytest.raises(ModelRefused, match="stop_token_ids"):
        Settings.read(tmp_path)


def test_a_proof_computes_as_the_backend_does_by_default():
    settings = Settings()
    assert {
        "INFERENCE_PRECISION_HINT": settings.inference_precision,
        "KV_CACHE_PRECISION": settings.kv_cache_precision,
    } == PROPERTIES


class Bytes:
    """A tokenizer whose tokens are bytes, after a first one."""

    context_length = 64
    token_bytes = {number: bytes([number]) for number in range(256)} | {256: b"<s>"}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [256] * add_special_tokens + list(text.encode())


def test_a_text_becomes_tokens_and_back():
    asked = {"prompt": "hé", "add_special_tokens": True}
    reply = json.loads(lm_tokens.reply_to(Bytes(), json.dumps(asked)))
    assert reply == {
        "tokens": [256, 104, 195, 169],
        "token_strs": ["<s>", "h", "\ufffd", "\ufffd"],
        "max_model_len": 64,
    }
    back = json.loads(lm_tokens.reply_to(Bytes(), json.dumps({"tokens": reply["tokens"]})))
    assert back == {"prompt": "<s>hé"}


@pytest.mark.parametrize(
    "request_",
    [
        "",
        "[]",
        "{}",
        '{"prompt": 1}',
        '{"prompt": "a", "add_special_tokens": 1}',
        '{"tokens": [257]}',
        '{"tokens": [true]}',
        '{"tokens": "a"}',
    ],
)
def test_what_is_no_request_to_the_tokenizer_is_refused(request_):
    with pytest.raises(lm_sampling.Refused):
        lm_tokens.reply_to(Bytes(), request_)
