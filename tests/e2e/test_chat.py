"""A language model: converted, proved, served by Triton, asked by OpenAI's own client, replaced and
rolled back."""

import json

import httpx
import openai
import pytest

from converters.conversion import ConversionOptions, convert
from converters.task import ConversionRequest
from converters.tasks.causal_lm.task import CausalLm
from gateway.models.chat_template import render
from tests.command_line import tidegate
from tests.conformance.schemas import ask
from tests.running import launch, stop, wait_ready
from tests.tiny_models import language_model

QUESTION = {"role": "user", "content": "Where is my parcel?"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return language_model(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def served(source, tmp_path_factory):
    """A stack that serves the folder, converted as F16."""
    home = tmp_path_factory.mktemp("chat")
    arguments = ("--task", "causal-lm", "--name", "tiny_chat")
    converted = tidegate(home, "convert", str(source), *arguments)
    assert converted.returncode == 0, converted.stderr
    running = launch(home, "tiny_chat")
    wait_ready(running)
    yield running
    assert stop(running) == 0


def test_openai_client_streams_and_versions_go_forward_and_back(served, tmp_path):
    with openai.OpenAI(api_key=served.key, base_url=f"{served.url}/v1", max_retries=0) as client:
        create = client.chat.completions.create
        asked = {"model": "tiny_chat", "messages": [QUESTION], "temperature": 0, "max_tokens": 12}
        whole = create(**asked)
        pieces = [
            chunk.choices[0].delta.content or ""
            for chunk in create(**asked, stream=True)
            if chunk.choices
        ]
        assert whole.choices[0].message.content == "".join(pieces) != ""
        assert whole.usage.completion_tokens == 12
        assert whole.choices[0].finish_reason == "length"

        other = language_model(tmp_path / "other", seed=2)
        arguments = ("--task", "causal-lm", "--name", "tiny_chat", "--force")
        replaced = tidegate(served.home, "convert", str(other), *arguments)
        assert replaced.returncode == 0, replaced.stderr
        assert _active(served.home) == 2
        back = tidegate(served.home, "rollback", "tiny_chat")
        assert back.returncode == 0, back.stderr
        assert _active(served.home) == 1
        assert create(**asked).choices[0].message.content == whole.choices[0].message.content


def test_tokens_are_the_engines_own(served):
    def post(path: str, **body) -> dict:
        reply = served.post(path, json={"model": "tiny_chat", **body})
        assert reply.status_code == 200, reply.text
        return reply.json()

    tokens = post("/tokenize", prompt="Größe 日本 😀")
    assert tokens["count"] == len(tokens["tokens"]) > 1
    assert post("/detokenize", tokens=tokens["tokens"]) == {"prompt": "Größe 日本 😀"}
    counted = post("/tokenize", messages=[QUESTION])
    asked = {"temperature": 0, "max_tokens": 6}
    chat = post("/v1/chat/completions", messages=[QUESTION], **asked)
    assert chat["usage"]["prompt_tokens"] == counted["count"]
    # A prompt of token ids is the prompt of their text.
    texts = [
        post("/v1/completions", prompt=prompt, **asked)["choices"][0]["text"]
        for prompt in ("Größe 日本 😀", tokens["tokens"])
    ]
    assert texts[0] == texts[1] != ""
    for path, body, param in (
        ("/detokenize", {"tokens": [10**9]}, "tokens"),
        ("/v1/completions", {"prompt": ""}, "prompt"),
        ("/v1/completions", {"prompt": [10**9]}, "prompt"),
        ("/v1/completions", {"prompt": "word " * 4000}, "prompt"),
        (
            "/v1/chat/completions",
            {"messages": [{**QUESTION, "content": "word " * 4000}]},
            "messages",
        ),
    ):
        refused = served.post(path, json={"model": "tiny_chat", **body})
        assert refused.status_code == 400, refused.text
        assert refused.json()["error"]["param"] == param


def test_answers_fit_their_schemas(served):
    headers = {"Authorization": f"Bearer {served.key}"}
    with httpx.Client(base_url=served.url, headers=headers, timeout=60) as client:
        for name in ("sentiment", "rating", "colour", "nullable", "referenced"):
            completion = ask(client, "tiny_chat", name, seed=1, max_tokens=64)
            assert completion.fault == "", completion
            assert completion.finish_reason in ("stop", "length")


def _active(home) -> int:
    listed = tidegate(home, "versions", "tiny_chat", "--json")
    versions = json.loads(listed.stdout)
    return next(version["number"] for version in versions if version["is_active"])


def test_the_gateway_renders_conversations_as_transformers_does(source, served):
    task = CausalLm(ConversionRequest("tiny_chat", str(source)))
    reference = convert(task, ConversionOptions("f16"), lambda line: None).reference
    answers, metadata = reference.outputs, reference.metadata
    compared = 0
    for text, expected, refused in zip(
        answers["conversations"], answers["rendered"], answers["refused"], strict=True
    ):
        conversation = json.loads(str(text))
        if refused or "tools" in conversation:
            continue
        actual = render(metadata["template"], conversation["messages"], metadata["variables"])
        assert actual == expected
        compared += 1
    assert compared == 7
