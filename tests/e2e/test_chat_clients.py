"""Stock clients talk with the built-in ``chat``, a real language model: openai for Python and for
JavaScript, LangChain, an agent's loop, the terminal. What they do is seen in the engine's counters.

The model knows little, so no test asks for a right answer: the form of each answer is checked, and
where a grammar makes it, its content."""

import json
import signal
import subprocess
import sys
from itertools import islice
from typing import Literal

import httpx
import openai
import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from tests.conformance.contract import Server, failures
from tests.running import RunningStack, environment, wait_until

MODEL = "chat"
QUESTION = {"role": "user", "content": "What is the capital of France?"}
SHORT = {"model": MODEL, "messages": [QUESTION], "temperature": 0, "max_tokens": 12}
# Minutes of text, unless somebody ends it.
ENDLESS = {"model": MODEL, "messages": [QUESTION], "max_tokens": 1000}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "order_status",
            "description": "The status of an order",
            "parameters": {
                "type": "object",
                "properties": {"order": {"type": "integer", "minimum": 1, "maximum": 99}},
                "required": ["order"],
                "additionalProperties": False,
            },
        },
    }
]


class City(BaseModel):
    """Every value is one of a few, so that a small model ends its answer."""

    country: Literal["France", "Germany"]
    is_capital: bool


@pytest.fixture
def client(stack):
    with openai.OpenAI(api_key=stack.key, base_url=f"{stack.url}/v1", max_retries=0) as stock:
        yield stock


@pytest.fixture
def langchain(stack):
    return ChatOpenAI(
        model=MODEL,
        api_key=stack.key,
        base_url=f"{stack.url}/v1",
        temperature=0,
        max_completion_tokens=40,
        max_retries=0,
    )


def test_openai_whole_and_streamed(client):
    whole = client.chat.completions.create(**SHORT)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**SHORT, **options))
    deltas = [chunk.choices[0] for chunk in chunks if chunk.choices]
    text = "".join(choice.delta.content or "" for choice in deltas)
    assert text == whole.choices[0].message.content != ""
    assert deltas[-1].finish_reason == whole.choices[0].finish_reason
    assert len(deltas) > 3
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens <= 12
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens > 10
    response = client.responses.create(
        model=MODEL, input=QUESTION["content"], temperature=0, max_output_tokens=12, store=False
    )
    assert response.output_text == text


def test_openai_completions_and_logprobs(client):
    options = {"temperature": 0, "max_tokens": 6, "extra_body": {"ignore_eos": True}}
    prompts = ["The capital of France is", "One, two, three,"]
    both = client.completions.create(model=MODEL, prompt=prompts, **options)
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.usage.completion_tokens == 12
    stream = client.completions.create(model=MODEL, prompt=prompts[0], stream=True, **options)
    assert "".join(chunk.choices[0].text for chunk in stream) == both.choices[0].text
    chosen = client.chat.completions.create(**SHORT, logprobs=True).choices[0]
    tokens = chosen.logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == chosen.message.content
    assert all(token.logprob <= 0 for token in tokens)


def test_openai_structured_output(client):
    parsed = client.chat.completions.parse(
        model=MODEL, messages=[QUESTION], response_format=City, temperature=1, seed=1, max_tokens=60
    )
    assert parsed.choices[0].finish_reason == "stop"
    assert isinstance(parsed.choices[0].message.parsed, City)
    with client.chat.completions.stream(
        model=MODEL, messages=[QUESTION], response_format=City, temperature=1, seed=2, max_tokens=60
    ) as events:
        final = events.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, City)
    refused = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}
    with pytest.raises(openai.BadRequestError, match="not"):
        client.chat.completions.create(**SHORT, response_format=refused)


def test_an_agents_loop_streams_its_call_and_its_answer(client):
    """As agents are written: tools are called until the model answers with a text."""
    messages, called = [{"role": "user", "content": "Where is order 17?"}], []
    for choice in ("required", "none"):
        with client.chat.completions.stream(
            model=MODEL,
            messages=messages,
            tools=TOOLS,
            tool_choice=choice,
            temperature=0,
            max_tokens=60,
        ) as events:
            completion = events.get_final_completion()
        message = completion.choices[0].message
        messages.append(message.model_dump(include={"role", "content", "tool_calls"}))
        for call in message.tool_calls or []:
            called.append((call.function.name, json.loads(call.function.arguments)))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "It was sent."})
        if not message.tool_calls:
            break
    ((name, arguments),) = called
    assert name == "order_status"
    assert 1 <= arguments["order"] <= 99
    assert message.content
    assert [one["role"] for one in messages] == ["user", "assistant", "tool", "assistant"]


def test_langchain(langchain):
    answer = langchain.invoke(QUESTION["content"])
    pieces = list(langchain.stream(QUESTION["content"]))
    assert "".join(piece.content for piece in pieces) == answer.content != ""
    assert len(pieces) > 3
    assert answer.usage_metadata["output_tokens"] <= 40
    city = langchain.with_structured_output(City, method="json_schema").invoke(QUESTION["content"])
    assert isinstance(city, City)


def test_langchain_binds_tools(langchain):
    bound = langchain.bind_tools(TOOLS, tool_choice="order_status")
    asked = [HumanMessage("Where is order 17?")]
    streamed = None
    for piece in bound.stream(asked):
        streamed = piece if streamed is None else streamed + piece
    (call,) = streamed.tool_calls
    assert call["name"] == "order_status"
    assert 1 <= call["args"]["order"] <= 99
    answer = langchain.invoke(
        [*asked, streamed, ToolMessage("It was sent.", tool_call_id=call["id"])]
    )
    assert answer.content
    assert not answer.tool_calls


NODE = """
import OpenAI from "openai";
const client = new OpenAI({ apiKey: process.env.KEY, baseURL: process.env.URL, maxRetries: 0 });
const { short, tools } = ASKED;
const whole = await client.chat.completions.create(short);
let text = "", usage = null;
const stream = await client.chat.completions.create(
  { ...short, stream: true, stream_options: { include_usage: true } });
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
const called = await client.chat.completions.stream(
  { ...short, max_tokens: 60, tools, tool_choice: "required" }).finalChatCompletion();
const left = await client.chat.completions.create({ ...short, max_tokens: 1000, stream: true });
for await (const chunk of left) break;  // leaves: the client aborts its request
console.log(JSON.stringify(
  { whole: whole.choices[0].message.content, text, usage, called: called.choices[0] }));
"""


def test_openai_for_javascript(stack, javascript):
    asked = json.dumps({"short": SHORT, "tools": TOOLS})
    output = javascript(stack, NODE.replace("ASKED", asked))
    assert output["whole"] == output["text"] != ""
    assert output["usage"]["completion_tokens"] <= 12
    assert output["called"]["finish_reason"] == "tool_calls"
    (call,) = output["called"]["message"]["tool_calls"]
    assert call["function"]["name"] == "order_status"
    wait_until(lambda: _is_idle(stack), 60, "an idle engine")


def _counters(stack: RunningStack) -> dict[str, float]:
    """The engine's own counters, in Triton's metrics."""
    text = httpx.get(f"http://127.0.0.1:{stack.metrics_port}/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("tidegate_")]
    counters = {line.split("{")[0]: float(line.split()[-1]) for line in lines if '"chat"' in line}
    assert counters
    return counters


def _is_idle(stack: RunningStack) -> bool:
    counters = _counters(stack)
    busy = ("tidegate_running", "tidegate_queued", "tidegate_kv_usage")
    return all(counters[name] == 0 for name in busy)


def test_streams_that_are_left_end_in_the_engine(client, stack):
    before = _counters(stack)
    streams = [
        client.chat.completions.create(
            **ENDLESS, seed=seed, stream=True, extra_body={"ignore_eos": True}
        )
        for seed in range(3)
    ]
    for stream in streams:
        assert len(list(islice(stream, 3))) == 3
    # The engine reports its load now and then.
    wait_until(lambda: _counters(stack)["tidegate_running"] >= 3, 30, "three sequences")
    for stream in streams:
        stream.close()
    wait_until(lambda: _is_idle(stack), 60, "an idle engine")
    after = _counters(stack)
    assert after["tidegate_cancelled"] == before["tidegate_cancelled"] + 3
    generated = after["tidegate_generated_tokens"] - before["tidegate_generated_tokens"]
    assert generated < 3 * ENDLESS["max_tokens"]


def test_what_is_published_keeps_the_contract_of_the_vllm_backend(stack):
    assert failures(Server(stack.grpc_address, MODEL)) == {}


def test_the_terminal(stack):
    brief = ("--temperature", "0", "--max-tokens", "12")
    spoken = stack.tidegate("chat", QUESTION["content"], *brief)
    assert spoken.returncode == 0, spoken.stderr
    assert "\x1b" not in spoken.stdout  # colour only on terminals
    piped = stack.tidegate("chat", *brief, input=QUESTION["content"] + "\n")
    assert piped.stdout == spoken.stdout
    document = json.loads(stack.tidegate("chat", QUESTION["content"], *brief, "--json").stdout)
    assert document["model"] == MODEL
    assert document["answer"].split() == spoken.stdout.split()
    unknown = stack.tidegate("chat", "hi", "--model", "no_such_model")
    assert unknown.returncode == 1
    assert "no_such_model" in unknown.stderr
    assert "chat" in unknown.stderr


def test_ctrl_c_ends_an_answer_here_and_in_the_engine(stack):
    command = [sys.executable, "-m", "tidegate", "chat", "Tell me a very long story."]
    with subprocess.Popen(
        # At random the story is a short one now and then.
        [*command, "--url", stack.url, "--max-tokens", "1000", "--temperature", "0"],
        env=environment(stack.home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores Ctrl-C, and its children with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    assert process.returncode != 0
    wait_until(lambda: _is_idle(stack), 60, "an idle engine")
