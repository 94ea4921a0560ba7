"""Decodes OpenAI's token ids, and compares the text with what OpenAI's tokenizer encoded."""

import asyncio
import sys
import threading

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.api.openai import token_ids
from gateway.api.openai.token_ids import MAX_ALL_IDS, MAX_IDS, decoded
from gateway.api.openai.token_inputs import as_text
from gateway.errors import InvalidRequest
from gateway.models.compiled_endpoint import VOCABULARY
from tests.gateway.vocabulary import fill_cache

ENDPOINT_SCHEMA = {"text": "text"}
TEXTS = [
    "Where is my parcel?",
    "",
    " \n\t",
    "Grüße aus Köln, 日本語, العربية, 👩‍👩‍👧 é\u0301\x00",
    "<|endoftext|> is a text here",
    "a" * 5000,
]


@pytest.fixture(scope="module")
def openai(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiktoken")
    fill_cache(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
        yield tiktoken.get_encoding(VOCABULARY)


def _ids(openai, text):
    return openai.encode(text, disallowed_special=())


@pytest.mark.parametrize("text", [text for text in TEXTS if text])
async def test_the_text_that_the_client_had(openai, text):
    ids = _ids(openai, text)
    assert await as_text(ids, ENDPOINT_SCHEMA, "input") == text
    assert await as_text([ids, "x", ids], ENDPOINT_SCHEMA, "input") == [text, "x", text]


def test_any_text(openai):
    @settings(max_examples=200, deadline=None)
    @given(st.text(min_size=1, max_size=60))
    def check(text):
        assert asyncio.run(as_text(_ids(openai, text), ENDPOINT_SCHEMA, "input")) == text

    check()


async def test_a_text_that_was_split_within_a_character(openai):
    """LangChain splits long texts at 8191 ids, wherever that is."""
    text = "Grüße 👩‍👩‍👧 日本語"
    ids = _ids(openai, text)
    for position in range(1, len(ids)):
        first, second = await as_text([ids[:position], ids[position:]], ENDPOINT_SCHEMA, "input")
        assert text.startswith(first) and text.endswith(second)
        assert len(text) - len(first + second) <= 1


async def test_special_tokens_are_their_text(openai):
    ids = openai.encode("a<|endoftext|>b", allowed_special="all")
    assert await as_text(ids, ENDPOINT_SCHEMA, "input") == "a<|endoftext|>b"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([9241, -1], "the token id -1 is not in the vocabulary cl100k_base"),
        ([9241, 100277], "the token id 100277 is not in the vocabulary"),
        ([100256], "the token id 100256 is not in the vocabulary"),
        ([2**70], f"the token id {2**70} is not in"),
        ([9241, 9468, 9241], "are not text"),  # half a character between two words
        ([1] * (MAX_IDS + 1), "at most 8192 token ids in an input"),
        ([[1] * MAX_IDS] * (MAX_ALL_IDS // MAX_IDS + 1), "and 300000 in all"),
    ],
)
async def test_ids_that_are_refused(ids, message):
    with pytest.raises(InvalidRequest, match=message) as caught:
        await as_text(ids, ENDPOINT_SCHEMA, "input")
    assert caught.value.param == "input"


async def test_the_endpoint_schema_chooses_the_vocabulary(openai):
    ids = _ids(openai, " my")
    other = await as_text(ids, {**ENDPOINT_SCHEMA, "vocabulary": "o200k_base"}, "input")
    assert other not in ("", " my")
    # Taken for the model's own ids.
    assert await as_text(ids, {**ENDPOINT_SCHEMA, "tokens_in": "ids"}, "input") == ids
    with pytest.raises(InvalidRequest, match=r"mean nothing to this model.*check_embedding_ctx"):
        await as_text(ids, {**ENDPOINT_SCHEMA, "vocabulary": ""}, "input")
    with pytest.raises(InvalidRequest, match="unknown vocabulary"):
        await as_text(ids, {**ENDPOINT_SCHEMA, "vocabulary": "nonsense"}, "input")


async def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(token_ids, "_LOADED", {})
    monkeypatch.setitem(sys.modules, "bpe_openai", None)
    with pytest.raises(
        InvalidRequest,
        match=r"without the extra .*pip install 'tidegate\[openai-tokens\]'.*send text",
    ):
        await as_text([1, 2], ENDPOINT_SCHEMA, "input")
    assert await as_text("text", ENDPOINT_SCHEMA, "input") == "text"


async def test_it_is_loaded_once_and_off_the_loop(monkeypatch):
    import bpe_openai

    loads, loaded = [], bpe_openai.get_encoding(VOCABULARY)
    gate = threading.Event()

    def slow(name):
        loads.append(name)
        assert gate.wait(20)
        return loaded

    monkeypatch.setattr(token_ids, "_LOADED", {})
    monkeypatch.setattr(bpe_openai, "get_encoding", slow)
    tasks = [asyncio.create_task(decoded([9241], VOCABULARY, "input")) for _ in range(5)]
    while not loads:  # noqa: ASYNC110 - a thread calls it
        await asyncio.sleep(0.001)
    gate.set()  # the loop goes on
    await asyncio.gather(*tasks)
    assert loads == [VOCABULARY]
