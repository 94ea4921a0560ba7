"""Every parameter of OpenAI's three text routes, as the stock package lists them: a value is
honored, changes nothing by its meaning, or is refused by name. None is dropped silently."""

import json
from typing import Any

import httpx
import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from tests.gateway.fake_llm import ServedLlm, served_llm, words

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
LISTED = {
    CHAT: chat_create_params.CompletionCreateParamsBase,
    COMPLETIONS: completion_create_params.CompletionCreateParamsBase,
    RESPONSES: response_create_params.ResponseCreateParamsBase,
}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
FLAT_TOOL = {"type": "function", **TOOL["function"]}
SCHEMA = {"name": "place", "schema": PARAMETERS}
USER = {"role": "user", "content": "Hello?"}
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [USER]},
    COMPLETIONS: {"prompt": "Hello?"},
    RESPONSES: {"input": "Hello?"},
}
# A value that is honored: the model receives another request for it, or the answer is another.
_SAMPLED = {
    "temperature": 0.5,
    "top_p": 0.5,
    "frequency_penalty": 1,
    "presence_penalty": 1,
    "logit_bias": {"5": 1},
    "seed": 7,
    "stop": "you",
    "max_tokens": 2,
    "n": 2,
    "stream": True,
}
_PENALTIES = ("frequency_penalty", "presence_penalty", "logit_bias", "seed", "n", "max_tokens")
HONORED: dict[str, dict[str, Any]] = {
    CHAT: {
        **_SAMPLED,
        "messages": [{"role": "user", "content": "Bye"}],
        "max_completion_tokens": 2,
        "logprobs": True,
        "tools": [TOOL],
        "response_format": {"type": "json_schema", "json_schema": SCHEMA},
    },
    COMPLETIONS: {**_SAMPLED, "prompt": "Bye", "logprobs": 2, "echo": True},
    RESPONSES: {
        **{name: value for name, value in _SAMPLED.items() if name not in ("n", "max_tokens")},
        "input": "Bye",
        "instructions": "Be brief.",
        "max_output_tokens": 2,
        "include": ["message.output_text.logprobs"],
        "tools": [FLAT_TOOL],
        "text": {"format": {"type": "json_schema", **SCHEMA}},
        "user": "me",  # repeated in the response, as are these
        "metadata": {"a": "b"},
        "safety_identifier": "me",
        "prompt_cache_key": "key",
        "parallel_tool_calls": False,
    },
}
# What is honored beside others: the fields that it needs, and its value.
HONORED_BESIDE: dict[str, dict[str, tuple[dict[str, Any], Any]]] = {
    CHAT: {
        "stream_options": ({"stream": True}, {"include_usage": True}),
        "tool_choice": ({"tools": [TOOL]}, "required"),
        "parallel_tool_calls": ({"tools": [TOOL], "tool_choice": "required"}, True),
        "top_logprobs": ({"logprobs": True}, 2),
    },
    COMPLETIONS: {"stream_options": ({"stream": True}, {"include_usage": True})},
    RESPONSES: {
        "tool_choice": ({"tools": [FLAT_TOOL]}, "required"),
        "top_logprobs": ({"include": ["message.output_text.logprobs"]}, 2),
    },
}
# Values that change nothing, because they mean what is done anyway.
NEUTRAL: dict[str, dict[str, list[Any]]] = {
    CHAT: {
        "user": ["", "me"],
        "metadata": [{}, {"a": "b"}],
        "safety_identifier": ["me"],
        "prompt_cache_key": ["key"],
        "prompt_cache_options": [{}],
        "functions": [[]],
        "function_call": ["none", "auto"],
        "modalities": [["text"]],
        "reasoning_effort": ["none"],
        "service_tier": ["auto", "default"],
        "store": [False],
        "parallel_tool_calls": [True, False],
        "stream_options": [{}],
        "n": [1],
        "stop": [[]],
        "logprobs": [False],
        "top_logprobs": [0],
        "stream": [False],
        "tools": [[]],
        "tool_choice": ["none", "auto"],
        "response_format": [{"type": "text"}],
    },
    COMPLETIONS: {
        "user": ["", "me"],
        "best_of": [1],
        "suffix": [""],
        "stream_options": [{}],
        "n": [1],
        "stop": [[]],
        "stream": [False],
        "echo": [False],
    },
    RESPONSES: {
        "metadata": [{}],
        "prompt_cache_options": [{}],
        "access_programs": [[]],
        "background": [False],
        "store": [False],
        "truncation": ["disabled"],
        "service_tier": ["auto", "default"],
        "context_management": [[]],
        "reasoning": [{}, {"effort": "none"}],
        "parallel_tool_calls": [True],
        "include": [[]],
        "stream_options": [{}],
        "stop": [[]],
        "stream": [False],
        "tools": [[]],
        "tool_choice": ["auto"],
        "top_logprobs": [0],
        "text": [{}, {"format": {"type": "text"}}],
    },
}
# Values that a request of that kind may have, refused: nothing here does what they ask for.
REFUSED: dict[str, dict[str, Any]] = {
    CHAT: {
        "audio": {"voice": "alloy", "format": "wav"},
        "functions": [{"name": "weather"}],
        "function_call": {"name": "weather"},
        "modalities": ["text", "audio"],
        "moderation": {"model": "m"},
        "prediction": {"type": "content", "content": "a"},
        "prompt_cache_options": {"ttl": "1h"},
        "prompt_cache_retention": "24h",
        "reasoning_effort": "high",
        "service_tier": "flex",
        "store": True,
        "verbosity": "low",
        "web_search_options": {},
    },
    COMPLETIONS: {"best_of": 2, "suffix": "end"},
    RESPONSES: {
        "access_programs": ["x"],
        "background": True,
        "context_management": [{"type": "compaction"}],
        "conversation": "conv_1",
        "image": {"a": 1},
        "max_tool_calls": 1,
        "moderation": {"model": "m"},
        "previous_response_id": "resp_1",
        "prompt": {"id": "p"},
        "prompt_cache_options": {"ttl": "1h"},
        "prompt_cache_retention": "24h",
        "reasoning": {"effort": "high"},
        "service_tier": "priority",
        "store": True,
        "truncation": "auto",
        "stream_options": {"include_obfuscation": True},
    },
}
# Tried for every parameter; most are wrong for most.
EDGES = [
    *(0, -1, 1, 10**6, 2**63 - 1, 2**63, 10**30, 1.5, -0.5, 1e308, True, False),
    *("", "x", "none", "auto", "1", "\x00", "\N{GRINNING FACE}"),
    *([], [1], ["x"], [None], [[]], {}, {"x": 1}, {"x": None}, {"type": "text"}),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with served_llm(tmp_path_factory.mktemp("llm"), tools={"parser": "hermes"}) as running:
        running.llm.write = lambda prompt, sampling: words("Hello there you all")
        yield running


@pytest.fixture(scope="module")
def http(served):
    headers = {"Authorization": f"Bearer {served.key}"}
    with httpx.Client(base_url=served.url, headers=headers, timeout=60) as client:
        yield client


def _ask(http: httpx.Client, served: ServedLlm, route: str, **fields: Any) -> tuple[int, str, Any]:
    """The status, the body of the response without what differs from one to the next, and what the
    model received."""
    served.llm.requests.clear()
    content = json.dumps({"model": "llm", **BODIES[route], **fields})
    reply = http.post(route, content=content)
    received = sorted(json.dumps(request, sort_keys=True) for request in served.llm.requests)
    return reply.status_code, _without_ids(reply), received


def _without_ids(reply: httpx.Response) -> str:
    if reply.headers["content-type"] != "application/json":
        return f"a stream, with usage: {'usage' in reply.text}"
    document = reply.json()
    for key in ("id", "created", "created_at", "completed_at"):
        document.pop(key, None)
    for item in document.get("output", []):
        item.pop("id")
    return json.dumps(document, sort_keys=True)


def _is_refused(reply: tuple[int, str, Any], name: str) -> bool:
    """Whether OpenAI's error object names the parameter, and the model received nothing."""
    status, body, received = reply
    if status == 200:
        return False
    error = json.loads(body)["error"]
    assert 400 <= status < 500, body
    assert error["type"] == "invalid_request_error" and error["message"], body
    if status == 404 and name == "model":
        return True
    assert (error["param"] or "").split(".")[0] == name, body
    return not received


@pytest.mark.parametrize("route", LISTED)
def test_the_tables_have_every_parameter_of_the_package(route):
    tables = (HONORED, HONORED_BESIDE, NEUTRAL, REFUSED)
    known = set().union(*(table[route] for table in tables))
    assert set(LISTED[route].__annotations__) - known == {"model"}


HONORED_ALONE = [
    (route, name, {}, value) for route in HONORED for name, value in HONORED[route].items()
]
HONORED_WITH_OTHERS = [
    (route, name, others, value)
    for route in HONORED_BESIDE
    for name, (others, value) in HONORED_BESIDE[route].items()
]


@pytest.mark.parametrize(
    ("route", "name", "others", "value"), [*HONORED_ALONE, *HONORED_WITH_OTHERS]
)
def test_what_is_honored_changes_the_request_or_the_answer(
    http, served, route, name, others, value
):
    before = _ask(http, served, route, **others)
    after = _ask(http, served, route, **others, **{name: value})
    assert (before[0], after[0]) == (200, 200), after
    assert after[1:] != before[1:]


@pytest.mark.parametrize(
    ("route", "name"), [(route, name) for route in REFUSED for name in REFUSED[route]]
)
def test_what_cannot_be_done_is_refused_by_name(http, served, route, name):
    assert _is_refused(_ask(http, served, route, **{name: REFUSED[route][name]}), name)


@pytest.mark.parametrize(
    ("route", "name"),
    [(r, name) for r in LISTED for name in [*sorted(LISTED[r].__annotations__), "stream"]],
)
def test_no_value_is_dropped_silently(http, served, route, name):
    """Nulls apart: they mean that a field is left out."""
    plain = _ask(http, served, route)
    if name not in ("model", *BODIES[route]):
        assert _ask(http, served, route, **{name: None}) == plain
    for value in [*EDGES, *NEUTRAL[route].get(name, [])]:
        reply = _ask(http, served, route, **{name: value})
        if _changes_nothing(route, name, value):
            assert reply[0] == 200, reply
        else:
            assert _is_refused(reply, name) or reply[1:] != plain[1:], value


def _changes_nothing(route: str, name: str, value: Any) -> bool:
    if name in ("user", "safety_identifier", "prompt_cache_key") and isinstance(value, str):
        return True
    if name == "metadata" and isinstance(value, dict):
        return all(isinstance(item, str) for item in value.values())
    if isinstance(value, dict):  # a null in it is left out, too
        value = {key: item for key, item in value.items() if item is not None}
    neutral = NEUTRAL[route].get(name, [])
    return any(value == other and type(value) is type(other) for other in neutral)


UNKNOWN = {"x": 1}
NESTED: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"no_such": 1}, "no_such"),
    (CHAT, {"messages": ["Hello"]}, "messages.0"),
    (CHAT, {"messages": [{**USER, **UNKNOWN}]}, "messages.0.x"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", **UNKNOWN}]}]},
     "messages.0.content.0.x"),
    (CHAT, {"response_format": {"type": "json_object", "schema": PARAMETERS}},
     "response_format.schema"),
    (CHAT, {"response_format": {"type": "text", **UNKNOWN}}, "response_format.x"),
    (CHAT, {"response_format": {"type": "json_schema", "json_schema": SCHEMA, **UNKNOWN}},
     "response_format.x"),
    (CHAT, {"response_format": {"type": "json_schema", "json_schema": {**SCHEMA, "name": 1}}},
     "response_format.json_schema.name"),
    (CHAT, {"response_format": {"type": "json_schema", "json_schema": {**SCHEMA, "strict": 1}}},
     "response_format.json_schema.strict"),
    (CHAT, {"tools": [{**TOOL, **UNKNOWN}]}, "tools.0.x"),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "f", "strict": "yes"}}]},
     "tools.0.function.strict"),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "f", **UNKNOWN}}]},
     "tools.0.function.x"),
    (CHAT, {"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools.0"),
    (CHAT, {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"},
     **UNKNOWN}}, "tool_choice.x"),
    (CHAT, {"stream": True, "stream_options": {"include_obfuscation": 0}}, "include_obfuscation"),
    (CHAT, {"stream": True, "stream_options": UNKNOWN}, "stream_options"),
    (CHAT, {"metadata": {"a": 1}}, "metadata"),
    (CHAT, {"metadata": dict.fromkeys(map(str, range(17)), "a")}, "metadata"),
    (RESPONSES, {"text": {"format": {"type": "text", **UNKNOWN}}}, "text.format.x"),
    (RESPONSES, {"text": {"format": {"type": "json_schema", **SCHEMA, **UNKNOWN}}},
     "text.format.x"),
    (RESPONSES, {"tools": [{**FLAT_TOOL, "defer_loading": True}]}, "tools.0.defer_loading"),
    (RESPONSES, {"tools": [FLAT_TOOL], "tool_choice": {"type": "function", "name": "weather",
     **UNKNOWN}}, "tool_choice.x"),
    (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a",
     **UNKNOWN}]}]}, "input.0.content.0.x"),
]  # fmt: skip
_CALL = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("call", "field"),
    [
        ({**_CALL, "id": 5}, ".id"),
        ({**_CALL, "type": "custom"}, ""),
        ({**_CALL, **UNKNOWN}, ".x"),
        ({**_CALL, "function": {**_CALL["function"], **UNKNOWN}}, ".function.x"),
    ],
)
def test_an_earlier_call_is_read_whole(http, served, call, field):
    messages = [USER, {"role": "assistant", "tool_calls": [call]}]
    status, body, received = _ask(http, served, CHAT, messages=messages)
    assert (status, received) == (400, [])
    assert json.loads(body)["error"]["param"] == f"messages.1.tool_calls.0{field}"


@pytest.mark.parametrize(("route", "fields", "param"), NESTED)
def test_what_is_nested_is_refused_by_name_too(http, served, route, fields, param):
    status, body, received = _ask(http, served, route, **fields)
    assert (status, received) == (400, [])
    assert json.loads(body)["error"]["param"] == param


def test_what_says_nothing_to_the_model_may_stay_in_a_conversation(http, served):
    """Notes about the cache, a call's index in a stream, nulls."""
    part = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    call = {**_CALL, "index": 0}
    messages = [
        {"role": "user", "content": [part], "name": None},
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]},
        {"role": "tool", "content": "b", "tool_call_id": "c"},
    ]
    assert _ask(http, served, CHAT, messages=messages)[0] == 200
    assert _ask(http, served, CHAT, tools=[{**TOOL, "x": None}])[0] == 200
    nulls = {"effort": None, "summary": None}
    assert _ask(http, served, RESPONSES, reasoning=nulls, text={"verbosity": None})[0] == 200


def test_seeds_of_several_texts_stay_in_range(http, served):
    _ask(http, served, CHAT, seed=2**63 - 1, n=2)
    seeds = {request["sampling"]["seed"] for request in served.llm.requests}
    assert seeds == {2**63 - 1, -(2**63) + 1}


FORMAT = {"response_format": {"type": "json_schema", "json_schema": SCHEMA}}
FLAT_FORMAT = {"text": {"format": {"type": "json_schema", **SCHEMA}}}


@pytest.mark.parametrize(
    ("route", "fields", "refusal", "param"),
    [
        (CHAT, FORMAT, "json schema: the keyword 'pattern' is not supported", "response_format"),
        (CHAT, FORMAT, "structured_outputs cannot be compiled: slow", "response_format"),
        (RESPONSES, FLAT_FORMAT, "json schema: the keyword 'x' is not supported", "text.format"),
        (CHAT, {"tools": [TOOL], "tool_choice": "required"}, "json schema: 'x'", "tools"),
        (CHAT, {}, "the prompt has 9 tokens, and the context holds 5", "messages"),
        (COMPLETIONS, {}, "the prompt is empty", "prompt"),
        (CHAT, {"min_p": 0.5}, "min_p must be below 0.4", "min_p"),
        (CHAT, {}, "something else", None),
    ],
)
def test_what_the_engine_refuses_is_named_as_the_request_names_it(
    http, served, route, fields, refusal, param
):
    served.llm.refusal = refusal
    try:
        status, body, _ = _ask(http, served, route, **fields)
    finally:
        served.llm.refusal = ""
    error = json.loads(body)["error"]
    assert (status, error["param"], error["message"]) == (400, param, refusal)
    is_too_long = "the context holds" in refusal
    assert error["code"] == ("context_length_exceeded" if is_too_long else "invalid_request")
