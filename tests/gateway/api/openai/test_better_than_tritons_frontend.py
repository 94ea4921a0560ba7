"""The six faults of Triton's own OpenAI frontend, none of which is ours; with stock clients."""

import json

import openai
import pytest
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from tests.gateway.fake_llm import served_llm, wait_for, words

USER = [{"role": "user", "content": "How is the weather?"}]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"$ref": "#/$defs/A"}},
    "$defs": {"A": {"enum": [1]}},
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": SCHEMA}}
    for name in ("one", "two")
]
CALL = '<tool_call>{"name": "two", "arguments": {"a": 1}}</tool_call>'


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with served_llm(tmp_path_factory.mktemp("llm"), tools={"parser": "hermes"}) as running:
        yield running


@pytest.fixture
def llm(served):
    served.llm.requests.clear()
    served.llm.delay_s = 0.0
    served.llm.write = lambda prompt, sampling: words("Grüße aus Zürich €")
    return served.llm


@pytest.fixture
def client(served):
    with openai.OpenAI(api_key=served.key, base_url=f"{served.url}/v1", max_retries=0) as stock:
        yield stock


def _chat(client, **more):
    return client.chat.completions.create(model="llm", messages=USER, **more)


def _grammar(llm) -> dict:
    return json.loads(llm.requests[-1]["sampling"]["structured_outputs"])


def test_1_finish_reason_is_length_when_it_was(client, llm):
    assert _chat(client, max_tokens=2).choices[0].finish_reason == "length"
    assert _chat(client).choices[0].finish_reason == "stop"
    assert list(_chat(client, max_tokens=2, stream=True))[-1].choices[0].finish_reason == "length"


def test_2_response_format_reaches_the_model(client, llm):
    llm.write = lambda prompt, sampling: [b'{"a":', b" 1}"]
    schema = {"name": "answer", "strict": True, "schema": SCHEMA}
    _chat(client, response_format={"type": "json_schema", "json_schema": schema})
    assert _grammar(llm) == {"json": SCHEMA}
    body = {"response_format": {"type": "json_object"}}
    client.completions.create(model="llm", prompt="x", extra_body=body)
    assert _grammar(llm) == {"json_object": True}


def test_3_required_allows_any_of_the_tools(client, llm):
    llm.write = lambda prompt, sampling: [b'{"name": "two", ', b'"arguments": {"a": 1}}']
    choice = _chat(client, tools=TOOLS, tool_choice="required").choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    [call] = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("two", {"a": 1})
    grammar = _grammar(llm)["json"]
    names = [one["properties"]["name"]["const"] for one in grammar["anyOf"]]
    assert names == ["one", "two"]
    assert grammar["$defs"]["two"]["properties"]["a"] == {"$ref": "#/$defs/two/$defs/A"}
    llm.write = lambda prompt, sampling: [b'{"a":', b"1}"]
    named = {"type": "function", "function": {"name": "two"}}
    [call] = _chat(client, tools=TOOLS, tool_choice=named).choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("two", '{"a":1}')
    assert _grammar(llm) == {"json": SCHEMA}


def test_4_the_sampled_token_is_reported_not_the_most_likely(client, llm):
    for top in (0, 1, 2, 5):
        tokens = _chat(client, logprobs=True, top_logprobs=top).choices[0].logprobs.content
        assert "".join(token.token for token in tokens) == "Grüße aus Zürich €"
        assert {token.logprob for token in tokens} == {-1.5}
        assert {len(token.top_logprobs) for token in tokens} == {top}
        assert bytes(byte for token in tokens for byte in token.bytes).decode() == (
            "Grüße aus Zürich €"
        )
    llm.write = lambda prompt, sampling: [b"5", *(bytes([b]) for b in "€".encode())]
    chunks = list(_chat(client, logprobs=True, stream=True))
    tokens = [
        token
        for chunk in chunks
        for choice in chunk.choices
        for token in (choice.logprobs.content if choice.logprobs else ())
    ]
    assert [token.bytes for token in tokens] == [[53], [0xE2], [0x82], [0xAC]]
    whole = client.completions.create(model="llm", prompt="p", logprobs=2).choices[0]
    assert whole.logprobs.token_logprobs == [-1.5] * 4
    assert whole.logprobs.text_offset == [0, 1, 2, 2]


def test_5_the_work_ends_when_the_client_leaves(client, llm):
    llm.write = lambda prompt, sampling: [b" more"] * 4000
    llm.delay_s, before = 0.2, llm.cancelled
    stream = _chat(client, stream=True, max_tokens=4000)
    next(stream)
    stream.close()
    wait_for(lambda: llm.cancelled > before)


def test_6_several_prompts_and_several_texts(client, llm):
    llm.write = lambda prompt, sampling: [f"{prompt}{sampling.get('seed', '')}".encode()]
    whole = client.completions.create(model="llm", prompt=["a", "b"], n=2, seed=7, echo=True)
    assert [choice.text for choice in whole.choices] == ["aa7", "aa8", "bb7", "bb8"]
    assert whole.usage.prompt_tokens == 2
    stream = client.completions.create(model="llm", prompt=["a", "b"], n=2, seed=7, stream=True)
    texts = [""] * 4
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["a7", "a8", "b7", "b8"]


def test_tools_by_the_models_own_choice_streamed(client, llm):
    text = f"Let me see. {CALL}{CALL}".encode()
    llm.write = lambda prompt, sampling: [text[at : at + 3] for at in range(0, len(text), 3)]
    with client.chat.completions.stream(model="llm", messages=USER, tools=TOOLS) as events:
        choice = events.get_final_completion().choices[0]
    assert (choice.message.content, choice.finish_reason) == ("Let me see. ", "tool_calls")
    calls = choice.message.tool_calls
    assert [call.function.name for call in calls] == ["two", "two"]
    assert len({call.id for call in calls}) == 2
    results = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in calls]
    llm.write = lambda prompt, sampling: [b"Sunny."]
    turn = choice.message.model_dump(exclude_none=True, exclude={"parsed"})
    for call in turn["tool_calls"]:
        call["function"].pop("parsed_arguments", None)
    final = client.chat.completions.create(
        model="llm", messages=[*USER, turn, *results], tools=TOOLS
    )
    assert final.choices[0].message.content == "Sunny."
    prompt = llm.requests[-1]["prompt"]
    assert prompt.startswith("<|im_start|>system\nYou can call functions.")
    assert prompt.count('<tool_call>\n{"name":"two","arguments":{"a":1}}\n</tool_call>') == 2
    assert prompt.count("<|im_start|>tool\n<tool_response>\nsunny\n</tool_response>") == 2
    _chat(client, tools=TOOLS, tool_choice="none")
    assert "call functions" not in llm.requests[-1]["prompt"]


class Weather(BaseModel):
    """The weather of a city."""

    city: str
    days: int


@tool
def weather(city: str, days: int) -> str:
    """The weather of a city."""
    return f"{city} {days}"


def test_langchain_calls_tools_and_gets_structured_output(served, llm):
    model = ChatOpenAI(model="llm", api_key=served.key, base_url=f"{served.url}/v1", max_retries=0)
    arguments = b'{"city": "Bern", "days": 2}'
    llm.write = lambda prompt, sampling: [
        b'<tool_call>{"name": "weather", "arguments": ' + arguments + b"}</tool_call>"
    ]
    [call] = model.bind_tools([weather]).invoke("How is it in Bern?").tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Bern", "days": 2})
    llm.write = lambda prompt, sampling: [arguments]
    for method in ("json_schema", "function_calling"):
        structured = model.with_structured_output(Weather, method=method)
        assert structured.invoke("How is it in Bern?") == Weather(city="Bern", days=2)
        assert "days" in json.dumps(_grammar(llm))


@pytest.mark.parametrize(
    ("more", "param", "words_of_it"),
    [
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice", "none, auto"),
        ({"tools": TOOLS * 65}, "tools", "at most 128"),
        ({"tools": [*TOOLS, TOOLS[0]]}, "tools", "one name"),
        ({"tools": [{"type": "web_search"}]}, "tools.0", "not supported"),
        ({"tool_choice": "required"}, "tool_choice", "needs 'tools'"),
        ({"response_format": {"type": "grammar"}}, "response_format.type", "not supported"),
        ({"messages": [{"role": "oracle", "content": "x"}]}, "messages.0.role", "one of"),
        ({"messages": []}, "messages", "at least one"),
        ({"max_tokens": 10_000_000}, "max_tokens", "1 to 4096"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "0 to 20"),
    ],
)
def test_what_is_wrong_is_named(client, llm, more, param, words_of_it):
    with pytest.raises(openai.BadRequestError, match=words_of_it) as error:
        client.chat.completions.create(**{"model": "llm", "messages": USER, **more})
    assert error.value.param == param
    assert llm.requests == []
