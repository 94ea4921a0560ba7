"""``tidegate chat`` against a small HTTP server that answers as the gateway does."""

import json
import os
import pty
import select
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from click.testing import CliRunner

from serving.errors import ServingError
from tidegate.app.chat import ChatOptions, Conversation
from tidegate.app.client import GatewayClient
from tidegate.app.paths import Paths
from tidegate.commands.chat import command

PIECES = ("It is ", "on its ", "way. \U0001f642", "\x1b[31m")
ANSWER = "".join(PIECES)
USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}


class Gateway(ThreadingHTTPServer):
    """Serves the chat models ``models``; ``events`` is what a chat completion streams."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.models = ["tiny"]
        self.asked = []
        self.events = [
            *({"choices": [{"delta": {"content": piece}}]} for piece in PIECES),
            {"choices": [{"delta": {}, "finish_reason": "stop"}]},
            {"choices": [], "usage": USAGE},
        ]
        self.refusal = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        models = {"properties": {"model": {"enum": self.server.models}}}
        body = {"content": {"application/json": {"schema": models}}}
        route = {"/v1/chat/completions": {"post": {"requestBody": body}}}
        self._reply(200, json.dumps({"paths": route if self.server.models else {}}))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append((self.headers["authorization"], body))
        if self.server.refusal:
            self._reply(400, json.dumps({"error": {"message": self.server.refusal}}))
            return
        events = [*map(json.dumps, self.server.events), "[DONE]"]
        self._reply(200, "".join(f"data: {event}\n\n" for event in events))

    def _reply(self, status, text):
        self.send_response(status)
        self.send_header("content-length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments):
        pass


@pytest.fixture
def gateway(tmp_path, monkeypatch):
    """A running Gateway, and a home whose dev key is ``secret``."""
    monkeypatch.delenv("TIDEGATE_API_KEY", raising=False)
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path))
    (tmp_path / ".tidegate").mkdir()
    (tmp_path / ".tidegate" / "dev.key").write_text("secret\n")
    with Gateway() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def call(gateway, *arguments, stdin=None):
    return CliRunner().invoke(command, [*arguments, "--url", gateway.url], input=stdin)


def test_one_answer_is_printed_without_control_characters(gateway):
    result = call(gateway, "Where is my parcel?", "--system", "Be brief.", "--max-tokens", "9")
    assert result.output == "It is on its way. \U0001f642[31m\n"
    ((key, body),) = gateway.asked
    assert key == "Bearer secret"
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where is my parcel?"},
    ]
    assert (body["model"], body["max_tokens"], body["stream"]) == ("tiny", 9, True)
    assert "temperature" not in body


def test_a_proxy_of_the_environment_never_gets_the_key(gateway, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert call(gateway, "Where is my parcel?").output.startswith("It is ")
    client = GatewayClient.at(gateway.url)
    gateway.refusal = "not like this"
    with pytest.raises(ServingError, match="the gateway refused"):
        client.call("chat", {})


def test_json_is_one_document(gateway):
    document = json.loads(call(gateway, "--json", stdin="Where?\n").output)
    assert document == {
        "model": "tiny",
        "answer": ANSWER,
        "finish_reason": "stop",
        "usage": USAGE,
    }


def test_a_conversation_keeps_its_answers_and_forgets_what_was_refused(gateway):
    conversation = Conversation.open(Paths.current(), gateway.url, ChatOptions())
    assert list(conversation.ask("one")) == list(PIECES)
    gateway.refusal = "the context is full"
    with pytest.raises(ServingError, match=r"400.*the context is full"):
        list(conversation.ask("two"))
    gateway.refusal = None
    list(conversation.ask("three"))
    conversation.close()
    texts = [message["content"] for message in gateway.asked[-1][1]["messages"]]
    assert texts == ["one", ANSWER, "three"]


@pytest.mark.parametrize(
    ("models", "model", "said"),
    [
        ([], "", "serves no chat model"),
        (["a", "b"], "", "one of a, b"),
        (["a", "b"], "c", "no chat model 'c'.* served are a, b"),
    ],
)
def test_the_model_must_be_clear(gateway, models, model, said):
    gateway.models = models
    with pytest.raises(ServingError, match=said):
        Conversation.open(Paths.current(), gateway.url, ChatOptions(model))


def test_a_talk_goes_on_after_a_refusal_and_begins_afresh(gateway, tmp_path):
    """On a terminal of its own, as a user types."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "tidegate", "chat", "--url", gateway.url],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TIDEGATE_HOME": str(tmp_path)},
    ) as process:
        os.close(slave)
        seen = _until(master, "> ")
        os.write(master, b"one\n")
        assert "way." in _until(master, "> ")
        gateway.refusal = "the context is full"
        os.write(master, b"two\n")
        assert "the context is full" in _until(master, "> ")
        gateway.refusal = None
        os.write(master, b"/new\n")
        _until(master, "> ")
        os.write(master, b"three\n")
        assert "way." in _until(master, "> ")
        os.write(master, b"\x04")
        assert process.wait(120) == 0
    os.close(master)
    assert "tiny" in seen
    assert [len(body["messages"]) for _, body in gateway.asked] == [1, 3, 1]


def _until(terminal, text):
    """What the terminal shows, up to this text."""
    seen = ""
    while text not in seen:
        assert select.select([terminal], [], [], 30)[0], seen
        seen += os.read(terminal, 1024).decode(errors="replace")
    return seen


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([{"choices": [{"delta": {"content": "It"}}]}], "ended before"),
        ([{"error": {"message": "the model was unloaded"}}], "the model was unloaded"),
    ],
)
def test_a_stream_that_ends_badly_is_an_error(gateway, events, said):
    gateway.events = events
    conversation = Conversation.open(Paths.current(), gateway.url, ChatOptions())
    with pytest.raises(ServingError, match=said):
        list(conversation.ask("Where?"))
    conversation.close()
    assert conversation.messages == []


def test_no_gateway_is_an_error_that_says_what_to_do(gateway):
    address = gateway.url
    gateway.server_close()
    with pytest.raises(ServingError, match="start it with `make up`"):
        Conversation.open(Paths.current(), address, ChatOptions())
