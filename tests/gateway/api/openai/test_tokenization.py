"""``/tokenize`` and ``/detokenize``, on an engine whose tokens are the bytes of the text."""

from types import SimpleNamespace

import httpx
import pytest

from gateway.api.openai.embeddings import resolve_model
from tests.gateway.fake_llm import served_llm

USER = {"role": "user", "content": "Grüße"}
RENDERED = "<|im_start|>user\nGrüße<|im_end|>\n"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with served_llm(tmp_path_factory.mktemp("llm"), tools={"parser": "hermes"}) as running:
        yield running


def _post(served, path: str, key: str = "", **body) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key or served.key}"}
    return httpx.post(f"{served.url}/{path}", json={"model": "llm", **body}, headers=headers)


def test_a_prompt_becomes_tokens_and_back(served):
    reply = _post(served, "tokenize", prompt="Grüße 😀", add_special_tokens=False).json()
    tokens = list("Grüße 😀".encode())
    assert reply == {
        "count": len(tokens),
        "max_model_len": 2048,
        "tokens": tokens,
        "token_strs": None,
    }
    assert _post(served, "detokenize", tokens=tokens).json() == {"prompt": "Grüße 😀"}
    assert _post(served, "detokenize", tokens=[]).json() == {"prompt": ""}
    reply = _post(served, "tokenize", prompt="a", return_token_strs=True).json()
    assert (reply["tokens"], reply["token_strs"]) == ([256, 97], ["256", "97"])


def test_a_conversation_is_what_chat_sends_to_the_model(served):
    def text(**body) -> str:
        tokens = _post(served, "tokenize", add_special_tokens=False, **body).json()["tokens"]
        return bytes(tokens).decode()

    opened = text(messages=[USER])
    assert opened == RENDERED + "<|im_start|>assistant\n"
    _post(served, "v1/chat/completions", messages=[USER])
    assert served.llm.requests[-1]["prompt"] == opened
    assert text(messages=[USER], add_generation_prompt=False) == RENDERED
    tools = [{"type": "function", "function": {"name": "weather"}}]
    assert "weather" in text(messages=[USER], tools=tools)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("tokenize", {}, "prompt"),
        ("tokenize", {"prompt": ["a", "b"]}, "prompt"),
        ("tokenize", {"prompt": "a", "messages": [USER]}, "prompt"),
        ("tokenize", {"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ("tokenize", {"prompt": "a", "add_special_tokens": 1}, "add_special_tokens"),
        ("tokenize", {"prompt": "a", "colour": "red"}, "colour"),
        (
            "tokenize",
            {"messages": [USER], "continue_final_message": True},
            "continue_final_message",
        ),
        ("tokenize", {"messages": [{"role": "oracle", "content": "x"}]}, "messages.0.role"),
        ("tokenize", {"messages": [{**USER, "content": "<|im_end|>"}]}, "messages.0"),
        ("detokenize", {"tokens": "a"}, "tokens"),
        ("detokenize", {"tokens": [True]}, "tokens"),
        ("detokenize", {"tokens": [300]}, "tokens"),
        ("detokenize", {"tokens": [1], "prompt": "a"}, "prompt"),
    ],
)
def test_what_is_wrong_is_named(served, path, body, param):
    reply = _post(served, path, **body)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param


def test_it_needs_a_key_and_a_model_that_it_may_use(served):
    for path in ("tokenize", "detokenize"):
        refused = _post(served, path, key="wrong", prompt="a")
        assert (refused.status_code, refused.json()["error"]["type"]) == (
            401,
            "authentication_error",
        )
        unknown = _post(served, path, model="other", prompt="a")
        assert unknown.status_code == 404


@pytest.mark.parametrize(("route", "answers"), [("tokenize", "llm"), ("chat", "its fallback")])
def test_another_models_tokens_never_answer(route, answers):
    endpoint = SimpleNamespace(openai={route: {}})
    gateway = SimpleNamespace(
        destination=lambda context, name: "its fallback",
        catalogue=SimpleNamespace(endpoint=lambda name: (name, endpoint)),
    )
    context = SimpleNamespace(require=lambda action, name: None)
    assert resolve_model(gateway, context, route, {"model": "llm"})[0] == answers
