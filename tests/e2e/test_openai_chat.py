"""Stock OpenAI clients talk to a model that follows the contract of Triton's vLLM backend."""

import json
import re
from functools import partial

import httpx
import numpy as np
import openai
import pytest
import tiktoken
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from tests.echoing import say
from tests.gateway.vocabulary import fill_cache
from tests.running import ROOT, wait_until

TEXT = "Where is my parcel?"


@pytest.fixture
def client(echo):
    with openai.OpenAI(api_key=echo.key, base_url=f"{echo.url}/v1", max_retries=0) as openai_client:
        yield openai_client


def _user(text: str) -> dict:
    return {"model": "echo_llm", "messages": [{"role": "user", "content": text}]}


def _text(stream) -> tuple[str, str | None]:
    """The whole text of a stream, and its finish reason."""
    text, reason = "", None
    for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
    return text, reason


def test_a_complete_response(client):
    response = client.chat.completions.create(**_user(TEXT))
    assert response.object == "chat.completion"
    assert response.id.startswith("chatcmpl-")
    assert response.choices[0].message.role == "assistant"
    assert response.choices[0].message.content == TEXT
    assert response.choices[0].finish_reason == "stop"
    assert response.usage.completion_tokens == 4
    assert response.usage.total_tokens == response.usage.prompt_tokens + 4


def test_a_streamed_response(client):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**_user(TEXT), **options))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].delta.content for c in chunks[1:5]] == ["Where", " is", " my", " parcel?"]
    assert chunks[5].choices[0].finish_reason == "stop"
    assert chunks[6].choices == []
    assert chunks[6].usage.completion_tokens == 4
    assert len(chunks) == 7


async def test_the_asynchronous_client(echo):
    async with openai.AsyncOpenAI(api_key=echo.key, base_url=f"{echo.url}/v1") as client:
        stream = await client.chat.completions.create(**_user(TEXT), stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        async with client.chat.completions.stream(**_user(TEXT)) as events:
            final = await events.get_final_completion()
    assert "".join(pieces) == final.choices[0].message.content == TEXT


def test_completions(client):
    whole = client.completions.create(model="echo_llm", prompt=TEXT, echo=True)
    assert whole.choices[0].text == TEXT * 2
    stream = client.completions.create(model="echo_llm", prompt=[TEXT], max_tokens=2, stream=True)
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Where is"
    assert chunks[-1].choices[0].finish_reason == "length"


def test_length_and_temperature_by_seed(client):
    short = client.chat.completions.create(**_user(TEXT), max_completion_tokens=3)
    assert short.choices[0].finish_reason == "length"
    assert short.choices[0].message.content == "Where is my"
    words = _user("one two three four five six seven eight")
    seeded = [
        client.chat.completions.create(**words, temperature=1, seed=seed).choices[0].message.content
        for seed in (1, 1, 2)
    ]
    assert seeded[0] == seeded[1] != seeded[2]


@pytest.mark.parametrize("command", ["", "[overrun] "])
@pytest.mark.parametrize("stop", ["is my", ["zzz", "s m"], " is"])
def test_a_stop_text_is_enforced_whether_or_not_the_model_does(client, command, stop):
    """Each spans two tokens or starts one; a model that continues is cut off and cancelled."""
    expected = {"is my": "Where ", " is": "Where"}.get(str(stop), "Where i")
    call = _user(command + TEXT)
    whole = client.chat.completions.create(**call, stop=stop).choices[0]
    assert (whole.message.content, whole.finish_reason) == (expected, "stop")
    assert _text(client.chat.completions.create(**call, stop=stop, stream=True)) == (
        expected,
        "stop",
    )


def test_unsupported_parameters_are_refused(client):
    tools = [{"type": "function", "function": {"name": "f"}}]
    json_object = {"type": "json_object"}
    for extra in ({"tools": tools}, {"logprobs": True}, {"response_format": json_object}):
        with pytest.raises(openai.BadRequestError, match="not supported") as error:
            client.chat.completions.create(**_user(TEXT), **extra)
        assert error.value.param == next(iter(extra))
    with pytest.raises(openai.NotFoundError, match="no_such_model"):
        client.chat.completions.create(model="no_such_model", messages=[])
    with pytest.raises(openai.NotFoundError, match="no endpoint"):
        client.chat.completions.create(model="identity_fp32", messages=[])
    with pytest.raises(openai.NotFoundError, match="does not serve embeddings"):
        client.embeddings.create(model="echo_llm", input="x")


def test_a_failure_before_the_first_token_has_a_status(client):
    with pytest.raises(openai.InternalServerError) as error:
        client.chat.completions.create(**_user("[fail 0] " + TEXT), stream=True)
    assert error.value.status_code == 502
    assert "secret" not in str(error.value)


def test_a_failure_in_the_middle_is_an_error_event_and_no_end(client, echo):
    stream = client.chat.completions.create(**_user("[fail 3] " + TEXT), stream=True)
    chunks = []
    with pytest.raises(openai.APIError, match="the model failed"):
        chunks.extend(chunk.choices[0] for chunk in stream)
    assert "".join(choice.delta.content or "" for choice in chunks) == "Where is"
    assert not any(choice.finish_reason for choice in chunks)
    body = {**_user("[fail 3] " + TEXT), "stream": True}
    raw = echo.post("/v1/chat/completions", json=body)
    assert raw.status_code == 200
    assert raw.headers["cache-control"] == "no-cache"
    assert raw.headers["x-accel-buffering"] == "no"
    last = raw.text.strip().split("\n\n")[-1]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["code"] == "upstream_error"
    assert error["request_id"] == raw.headers["x-request-id"]
    assert "[DONE]" not in raw.text
    assert "secret" not in raw.text


def test_a_client_that_leaves_stops_the_model(echo):
    before = float(say(echo, "[cancelled]"))
    body = {**_user("[repeat 2000] [delay 0.01] a b c"), "stream": True}
    post = httpx.stream(
        "POST", f"{echo.url}/v1/chat/completions", json=body, headers=echo.headers, timeout=10
    )
    with post as response:
        next(response.iter_lines())
    # By itself it would go on for twenty seconds.
    wait_until(lambda: float(say(echo, "[cancelled]")) == before + 1, 30, "the cancel in Triton")


def test_a_client_that_does_not_read_fills_no_memory(echo):
    """30 MB are generated for it; the gateway only holds as much as the sockets' buffers."""
    gateway = next(p for p in echo.family() if p.cmdline()[1:3] == ["-m", "gateway"])
    count, before = float(say(echo, "[made]")), gateway.memory_info().rss
    body = {**_user("[repeat 300] [delay 0] " + "x" * 100_000), "max_tokens": 300, "stream": True}
    post = httpx.stream(
        "POST", f"{echo.url}/v1/chat/completions", json=body, headers=echo.headers, timeout=10
    )
    with post as response:
        parts = response.iter_raw()
        next(parts)
        wait_until(lambda: float(say(echo, "[made]")) > count + 300, 30, "the model's work")
        assert gateway.memory_info().rss - before < 20e6
        assert sum(map(len, parts)) > 29e6  # it reads in the end, and gets everything


LIMITS = """
[[limits]]
scope = "key"
kind = "concurrency"
amount = 1
models = ["echo_llm"]

[[limits]]
scope = "key"
kind = "tokens"
amount = 100000
window_s = 60
models = ["echo_llm"]
"""


def _tokens_left(headers) -> int:
    return int(re.search(r'tokens[^,]*";r=(\d+)', headers["ratelimit"]).group(1))


def test_limits_hold_to_the_last_byte_and_are_settled_with_the_actual_usage(client, echo_policy):
    echo_policy(LIMITS)
    raw = client.chat.completions.with_raw_response
    call = _user("[repeat 10] [delay 0.3] a b")
    with client.chat.completions.with_streaming_response.create(**call, stream=True) as first:
        assert first.headers["x-ratelimit-limit-tokens"] == "100000"
        reserved = _tokens_left(first.headers)
        assert reserved < 99_000  # the most that the model may use: max_tokens by default
        lines = first.iter_lines()
        next(lines)
        with pytest.raises(openai.RateLimitError, match="at once"):
            client.chat.completions.create(**_user("a"))
        assert "data: [DONE]" in list(lines)
    after = raw.create(**_user("a"), max_tokens=10)
    assert _tokens_left(after.headers) > 99_500


def test_langchain(echo, stack):
    chat = ChatOpenAI(
        model="echo_llm", api_key=echo.key, base_url=f"{echo.url}/v1", temperature=0, max_retries=0
    )
    response = chat.invoke([("system", "Be brief."), ("user", TEXT)])
    assert response.content == TEXT
    assert response.usage_metadata["output_tokens"] == 4
    pieces = list(chat.stream(TEXT))
    assert "".join(piece.content for piece in pieces) == TEXT
    assert len(pieces) > 4
    embeddings = OpenAIEmbeddings(
        model="text_embedding",
        api_key=stack.key,
        base_url=f"{stack.url}/v1",
        check_embedding_ctx_length=False,  # otherwise it sends OpenAI's token ids: see below
    )
    vectors = embeddings.embed_documents([TEXT, "I want my money back."])
    assert [len(vector) for vector in vectors] == [384, 384]


def test_token_arrays_give_the_vectors_of_their_texts(stack, tmp_path, monkeypatch):
    """LangChain with its defaults, and OpenAI's client with the ids of OpenAI's tokenizer."""
    fill_cache(tmp_path)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    texts = [TEXT, "Grüße aus Köln 👩‍👩‍👧, I want my money back."]
    url = f"{stack.url}/v1"
    with openai.OpenAI(api_key=stack.key, base_url=url, max_retries=0) as client:
        create = partial(client.embeddings.create, model="text_embedding")
        expected = [item.embedding for item in create(input=texts).data]
        encode = tiktoken.get_encoding("cl100k_base").encode
        ids = [encode(text) for text in texts]
        response = create(input=ids, encoding_format="float")
        assert np.allclose([item.embedding for item in response.data], expected, atol=1e-6)
        assert response.usage == create(input=texts).usage  # the model's own count
        assert np.allclose(create(input=ids[0]).data[0].embedding, expected[0], atol=1e-6)
        for wrong in ([-1], [100_277], [[1], [2**40]], [1] * 9000):
            with pytest.raises(openai.BadRequestError, match=r"'input(\.\d+)?'.*token id"):
                create(input=wrong)
    embeddings = OpenAIEmbeddings(model="text_embedding", api_key=stack.key, base_url=url)
    assert np.allclose(embeddings.embed_documents(texts), expected, atol=1e-6)
    assert np.allclose(embeddings.embed_query(TEXT), expected[0], atol=1e-6)


def test_a_prompt_of_token_ids(client):
    response = client.completions.create(
        model="echo_llm", prompt=[9241, 374, 856, 30409, 30], max_tokens=9
    )
    assert response.choices[0].text == TEXT
    with pytest.raises(openai.BadRequestError, match="'prompt': the token id 100277"):
        client.completions.create(model="echo_llm", prompt=[100_277])


NODE = """
import OpenAI from "openai";
const client = new OpenAI({ apiKey: process.env.KEY, baseURL: process.env.URL, maxRetries: 0 });
const messages = [{ role: "user", content: "Where is my parcel?" }];
const whole = await client.chat.completions.create({ model: "echo_llm", messages });
const stream = await client.chat.completions.create({
  model: "echo_llm", messages, stream: true, stream_options: { include_usage: true },
});
let text = "", usage = null;
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
const failing = [{ role: "user", content: "[fail 2] a b c d" }];
let fault = "";
try {
  const broken = await client.chat.completions.create(
    { model: "echo_llm", messages: failing, stream: true });
  for await (const chunk of broken) {}
} catch (error) { fault = error.constructor.name + ": " + error.message; }
let refused = "";
try {
  await client.chat.completions.create({ model: "echo_llm", messages, logprobs: true });
} catch (error) { refused = error.constructor.name; }
const content = whole.choices[0].message.content;
console.log(JSON.stringify({ whole: content, text, usage, fault, refused }));
"""


def test_the_javascript_client(echo, javascript):
    output = javascript(echo, NODE)
    assert output["whole"] == output["text"] == TEXT
    assert output["usage"]["completion_tokens"] == 4
    assert "the model failed" in output["fault"]
    assert output["refused"] == "BadRequestError"


def test_the_description_names_the_routes(echo):
    paths = echo.get("/openapi.json").json()["paths"]
    names = paths["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]
    assert names["schema"]["properties"]["model"]["enum"] == ["echo_llm"]
    assert "/v1/completions" in paths
    assert "/v1/echo_llm" not in paths  # it streams
    assert echo.post("/v1/echo_llm", json={"text_input": "x"}).status_code == 404
    assert (ROOT / "docs" / "openai.md").exists()
