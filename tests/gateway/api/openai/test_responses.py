"""``/v1/responses`` with the stock client: what chat gives, in OpenAI's items and events."""

import itertools
import json

import openai
import pytest
from langchain_openai import ChatOpenAI

from tests.gateway.fake_llm import served_llm, words

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call>'


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    binding = {"tools": {"parser": "hermes"}, "reasoning": {"start": "<think>", "end": "</think>"}}
    with served_llm(tmp_path_factory.mktemp("llm"), **binding) as running:
        yield running


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A model with neither tools nor reasoning."""
    with served_llm(tmp_path_factory.mktemp("llm")) as running:
        yield running


@pytest.fixture
def llm(served):
    served.llm.requests.clear()
    served.llm.write = lambda prompt, sampling: words("Grüße aus Zürich €")
    return served.llm


def _client(served) -> openai.OpenAI:
    return openai.OpenAI(api_key=served.key, base_url=f"{served.url}/v1", max_retries=0)


@pytest.fixture
def client(served):
    with _client(served) as stock:
        yield stock


def _create(client, **fields):
    return client.responses.create(**{"model": "llm", "input": "Hello?", **fields})


def _refusal(client, **fields) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as refused:
        _create(client, **fields)
    return refused.value


def test_a_text_and_what_it_took(client, llm):
    response = _create(
        client,
        instructions="Be brief.",
        temperature=0.5,
        top_p=0.9,
        max_output_tokens=9,
        store=False,
        metadata={"a": "b"},
    )
    assert response.output_text == "Grüße aus Zürich €"
    assert (response.object, response.status, response.model) == ("response", "completed", "llm")
    assert response.id.startswith("resp_") and response.error is None
    assert (response.store, response.previous_response_id) == (False, None)
    assert (response.temperature, response.top_p, response.max_output_tokens) == (0.5, 0.9, 9)
    assert (response.instructions, response.metadata) == ("Be brief.", {"a": "b"})
    [item] = response.output
    assert (item.type, item.role, item.status) == ("message", "assistant", "completed")
    [request] = llm.requests
    assert request["sampling"] == {"temperature": 0.5, "top_p": 0.9, "max_tokens": 9}
    assert request["prompt"].index("system\nBe brief.") < request["prompt"].index("user\nHello?")
    usage = response.usage
    assert (usage.input_tokens, usage.output_tokens) == (len(request["prompt"].split()), 4)
    assert usage.total_tokens == usage.input_tokens + 4
    assert usage.input_tokens_details.cached_tokens == 0


def test_the_model_receives_what_it_would_receive_of_a_chat(client, llm):
    call = {"name": "weather", "arguments": '{"city": "Bern"}'}
    _create(
        client,
        instructions="Be brief.",
        tools=[TOOL],
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "Bern?"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": []},
            {
                "type": "message",
                "role": "assistant",
                "id": "msg_1",
                "status": "completed",
                "content": [{"type": "output_text", "text": "I look.", "annotations": []}],
            },
            {"type": "function_call", "id": "fc_1", "call_id": "call_1", **call},
            {"type": "function_call_output", "call_id": "call_1", "output": "Sun"},
        ],
    )
    turn = {"id": "call_1", "type": "function", "function": call}
    client.chat.completions.create(
        model="llm",
        tools=[{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}],
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Bern?"},
            {"role": "assistant", "content": "I look.", "tool_calls": [turn]},
            {"role": "tool", "tool_call_id": "call_1", "content": "Sun"},
        ],
    )
    as_response, as_chat = llm.requests
    assert as_response == as_chat


def test_a_text_that_was_cut_off_is_incomplete(client, llm):
    response = _create(client, max_output_tokens=2)
    assert (response.status, response.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )
    assert (response.output_text, response.output[0].status) == ("Grüße aus", "incomplete")
    assert [event.type for event in _create(client, max_output_tokens=2, stream=True)][
        -1
    ] == "response.incomplete"


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_object"},
        {"type": "json_schema", "name": "place", "schema": PARAMETERS, "strict": True},
    ],
)
def test_a_format_reaches_the_model(client, llm, form):
    response = _create(client, text={"format": form})
    grammar = json.loads(llm.requests[-1]["sampling"]["structured_outputs"])
    assert grammar == ({"json": PARAMETERS} if "schema" in form else {"json_object": True})
    assert response.text.format.type == form["type"]


def test_reasoning_text_and_calls_are_items_and_go_back_as_they_are(client, llm):
    llm.write = lambda prompt, sampling: words(f"<think>a b</think> I look. {CALL}")
    response = _create(client, tools=[TOOL], parallel_tool_calls=True)
    reasoning, message, call = response.output
    assert reasoning.content[0].text == "a b"
    assert message.content[0].text.strip() == "I look."
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Bern"})
    assert call.call_id and call.status == "completed"
    assert (response.tools[0].name, response.parallel_tool_calls) == ("weather", True)
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "Sun"}
    llm.write = lambda prompt, sampling: words("It is sunny.")
    items = [{"role": "user", "content": "Hello?"}, *response.output, output]
    assert _create(client, tools=[TOOL], input=items).output_text == "It is sunny."
    turn = llm.requests[-1]["prompt"].partition("I look.")[2]
    assert turn.index('<tool_call>\n{"name":"weather"') < turn.index("Sun")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
def test_a_call_can_be_made_to_come(client, llm, choice):
    arguments = '{"city": "Bern"}'
    is_named = choice != "required"
    whole = f'{{"name": "weather", "arguments": {arguments}}}'
    llm.write = lambda prompt, sampling: words(arguments if is_named else whole)
    response = _create(client, tools=[TOOL], tool_choice=choice)
    [call] = response.output
    assert (call.type, call.name) == ("function_call", "weather")
    assert json.loads(call.arguments) == {"city": "Bern"}
    grammar = json.loads(llm.requests[-1]["sampling"]["structured_outputs"])["json"]
    assert (grammar == PARAMETERS) == is_named


def test_a_stream_has_openais_events_in_order(client, llm):
    llm.write = lambda prompt, sampling: words(f"<think>a</think>Hi you {CALL}")
    events = list(_create(client, tools=[TOOL], stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert [kind for kind, _ in itertools.groupby(kinds)] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    final = events[-1].response
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]
    for at, item in enumerate(final.output):
        own = [event for event in events if getattr(event, "output_index", None) == at]
        assert {event.item_id for event in own if hasattr(event, "item_id")} == {item.id}
        said = item.arguments if item.type == "function_call" else item.content[0].text
        assert "".join(event.delta for event in own if event.type.endswith(".delta")) == said
        assert own[0].item.status == "in_progress"
        assert own[-1].item == item
    assert final.usage.output_tokens == len(words(f"<think>a</think>Hi you {CALL}"))


def test_the_stock_clients_own_accumulator_follows_the_stream(client, llm):
    with client.responses.stream(model="llm", input="Hello?") as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(texts) == final.output_text == "Grüße aus Zürich €"


def test_langchain_streams_and_calls(served, llm):
    chat = ChatOpenAI(
        model="llm", api_key=served.key, base_url=f"{served.url}/v1", use_responses_api=True
    )
    assert "".join(chunk.text for chunk in chat.stream("Hello?")) == "Grüße aus Zürich €"
    llm.write = lambda prompt, sampling: words(CALL)
    answer = chat.bind_tools([TOOL]).invoke("Bern?")
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [
        ("weather", {"city": "Bern"})
    ]


def test_a_stream_that_fails_ends_with_an_error_that_the_client_raises(client, llm, served):
    llm.write = lambda prompt, sampling: [b"a", b"b", b"\xff"]  # the fake fails at the third
    with pytest.raises(openai.APIError) as failed:
        list(_create(client, stream=True))
    assert failed.value.code == "upstream_error"
    raw = client.responses.with_streaming_response
    with raw.create(model="llm", input="Hello?", stream=True) as response:
        *_, kind, data = filter(None, response.iter_lines())
    assert kind == "event: error"
    document = json.loads(data.removeprefix("data: "))
    assert (document["type"], document["code"]) == ("error", "upstream_error")
    assert document["message"] and document["sequence_number"] > 3


def test_log_probabilities_of_a_text(plain):
    plain.llm.write = lambda prompt, sampling: words("Hello you")
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    with _client(plain) as client:
        part = _create(client, **fields).output[0].content[0]
        events = list(_create(client, stream=True, **fields))
        assert _refusal(client, top_logprobs=2).param == "top_logprobs"
        assert _refusal(client, tools=[TOOL]).param == "tools"
    assert [entry.token for entry in part.logprobs] == ["Hello", " you"]
    assert len(part.logprobs[0].top_logprobs) == 2
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert [entry.token for event in deltas for entry in event.logprobs] == ["Hello", " you"]


CONVERSATION = [{"role": "user", "content": "a"}]
CALLED = {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "c", "output": "a"}
USAGE = {"include_usage": True}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"max_tool_calls": 1}, "max_tool_calls"),
        ({"include": ["reasoning.encrypted_content"]}, "include"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{**TOOL, "name": "a b"}]}, "tools.0.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
        ({"tools": [TOOL], "text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"temperature": 3}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"extra_body": {"max_tokens": 5}}, "max_tokens"),
        ({"extra_body": {"no_such": 5}}, "no_such"),
        ({"stream": True, "extra_body": {"stream_options": USAGE}}, "stream_options"),
        ({"instructions": ["a"]}, "instructions"),
        ({"input": []}, "input"),
        ({"input": ["a"]}, "input.0"),
        ({"input": [*CONVERSATION, {"type": "item_reference", "id": "x"}]}, "input.1"),
        ({"input": [{"role": "tool", "content": "a"}]}, "input.0.role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0"),
        ({"input": [{"role": "user", "content": "<|im_start|>"}]}, "input.0"),
        ({"input": [{**CALLED, "arguments": "["}]}, "input.0.arguments"),
        ({"input": [{**CALLED, "arguments": '{"a": "<|im_end|>"}'}]}, "input.0"),
        ({"input": [RESULT]}, "input.0.call_id"),
        ({"input": [{"type": "reasoning", "summary": [{"text": "a"}]}]}, "input.0.summary"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(client, llm, fields, param):
    assert _refusal(client, **fields).param == param
    assert not llm.requests


def test_values_that_change_nothing_are_accepted(client, llm):
    neutral = {"background": False, "truncation": "disabled", "include": [], "tools": []}
    assert _create(client, **neutral, service_tier="auto", parallel_tool_calls=False).output_text


def test_nothing_is_stored(client, llm):
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(_create(client).id)
