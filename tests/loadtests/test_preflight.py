"""A missing stack is reported in one line, before Locust starts."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from loadtests.preflight import (
    CannotStart,
    check_gateway,
    check_triton,
    check_ui_port,
    find_key,
)

MODELS = {"data": [{"id": "text_embedding"}]}


@pytest.fixture
def gateway():
    """A fake gateway that responds from ``answers``: path -> (status, body)."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, body = answers[self.path]
            seen[self.path] = self.headers.get("Authorization")
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_):
            """Say nothing."""

    answers = {"/readyz": (200, {}), "/v1/models": (200, MODELS)}
    seen = {}
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", answers, seen
        server.shutdown()
        thread.join()


@pytest.fixture
def dead_port():
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        return server.server_port


def test_a_ready_gateway_is_called_with_the_key(gateway):
    url, _, seen = gateway
    check_gateway(url, "tg_x")
    assert seen == {"/readyz": None, "/v1/models": "Bearer tg_x"}


@pytest.mark.parametrize(
    ("path", "response", "message"),
    [
        ("/readyz", (503, {}), "is not ready .HTTP 503.: run `make up`"),
        ("/v1/models", (401, {}), "refuses the API key .HTTP 401.: set TIDEGATE_API_KEY"),
        ("/v1/models", (403, {}), "refuses the API key"),
        ("/v1/models", (500, {}), "does not serve text_embedding"),
        ("/v1/models", (200, {"data": []}), "does not serve text_embedding"),
        ("/v1/models", (200, ["?"]), "does not serve text_embedding"),
    ],
)
def test_the_problem_with_a_gateway_is_named(gateway, path, response, message):
    url, answers, _ = gateway
    answers[path] = response
    with pytest.raises(CannotStart, match=message):
        check_gateway(url, "tg_x")


def test_nothing_listens(dead_port):
    with pytest.raises(CannotStart, match=r"Connection refused.*make up"):
        check_gateway(f"http://127.0.0.1:{dead_port}", "tg_x")
    with pytest.raises(CannotStart, match=r"no Triton answers gRPC at .*make up"):
        check_triton(f"127.0.0.1:{dead_port}")


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8080",
        "file:///etc/passwd",
        "",
        "http://",
        "http://[::1",
        "http://a:b",
        "http://127.0.0.1:8080/v1",
        "http://user@127.0.0.1:8080",
    ],
)
def test_the_url_must_be_one(url):
    with pytest.raises(CannotStart, match="pass http://HOST:PORT"):
        check_gateway(url, "tg_x")


def test_a_taken_ui_port(gateway, dead_port):
    with pytest.raises(CannotStart, match="--ui-port"):
        check_ui_port(int(gateway[0].rpartition(":")[2]))
    check_ui_port(dead_port)


def test_the_key_comes_from_the_environment_or_the_home(tmp_path):
    home = {"TIDEGATE_HOME": str(tmp_path)}
    with pytest.raises(CannotStart, match=r"dev\.key: run `make up` first"):
        find_key(home)
    (tmp_path / ".tidegate").mkdir()
    (tmp_path / ".tidegate" / "dev.key").write_text("tg_file\n")
    assert find_key(home) == "tg_file"
    assert find_key({**home, "TIDEGATE_API_KEY": "tg_mine "}) == "tg_mine"


def test_a_key_that_no_header_can_carry(gateway):
    with pytest.raises(CannotStart, match="characters that no header can carry"):
        check_gateway(gateway[0], "tg_\u00fc")
