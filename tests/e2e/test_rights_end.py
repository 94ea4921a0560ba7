"""Streams of a real stack end, with the right error, soon after the caller's rights have ended."""

import json
import threading

import httpx
import pytest

from tests.e2e.test_stream_outcomes import CHAT, GENERATE, _audited, _body
from tests.running import wait_until

LONG = "[repeat 100000] [delay 0.02] a"
SILENT = (
    "[repeat 3] [delay 8] a b c"  # nothing moves on it for longer than a revoked right may last
)


def _create_key(echo, name: str, *flags: str) -> dict[str, str]:
    run = echo.tidegate("keys", "create", name, *flags, "--json")
    assert run.returncode == 0, run.stderr
    key = json.loads(run.stdout)["key"]
    headers = {"Authorization": f"Bearer {key}", "x-request-id": name}
    wait_until(
        lambda: httpx.get(f"{echo.url}/v1/models", headers=headers).status_code == 200,
        30,
        "the key",
    )
    return headers


def _last_event(response: httpx.Response) -> dict:
    events = [line for line in response.iter_lines() if line.startswith("data: ")]
    return json.loads(events[-1].removeprefix("data: "))


@pytest.mark.parametrize("text", [LONG, SILENT], ids=["moving", "silent"])
@pytest.mark.parametrize("path", [CHAT, GENERATE])
def test_a_revoked_key_ends_its_stream(echo, path, text):
    name = f"rights-{path[1:3]}-{len(text)}"
    headers = _create_key(echo, name)
    body = _body(path, text)
    with httpx.stream("POST", echo.url + path, json=body, headers=headers, timeout=30) as response:
        assert response.status_code == 200
        lines = response.iter_lines()
        next(lines)
        assert echo.tidegate("keys", "revoke", name).returncode == 0
        *_, last = [line for line in lines if line.startswith("data: ")]
    fault = json.loads(last.removeprefix("data: "))["error"]
    assert "no valid API key" in (fault if path == GENERATE else fault["message"])
    expected = ("echo_llm", "deny", 401)
    wait_until(lambda: expected in _audited(echo, name), 30, "its line")


def test_a_revoked_key_ends_a_long_answer_in_one_piece(echo):
    name = "rights-whole"
    headers = _create_key(echo, name)
    body = {**_body(CHAT, LONG), "stream": False}
    revoking = threading.Timer(1.0, lambda: echo.tidegate("keys", "revoke", name))
    revoking.start()
    response = httpx.post(echo.url + CHAT, json=body, headers=headers, timeout=30)
    revoking.join()
    assert response.status_code == 401


def test_a_key_that_expires_ends_its_stream(echo):
    headers = _create_key(echo, "rights-expires", "--expires", "12s")
    body = _body(CHAT, LONG)
    with httpx.stream("POST", echo.url + CHAT, json=body, headers=headers, timeout=30) as response:
        assert response.status_code == 200
        fault = _last_event(response)
    assert fault["error"]["code"] == "unauthenticated"


def test_a_lowered_limit_ends_the_youngest_stream(echo, echo_policy):
    limit = '[[limits]]\nscope = "key"\nkind = "concurrency"\namount = {}\n'
    headers = _create_key(echo, "rights-limits")
    echo_policy(limit.format(2))
    body = _body(CHAT, LONG)
    options = {"json": body, "headers": headers, "timeout": 30}
    with httpx.stream("POST", echo.url + CHAT, **options) as oldest:
        first = oldest.iter_lines()
        next(first)
        with httpx.stream("POST", echo.url + CHAT, **options) as youngest:
            lines = youngest.iter_lines()
            next(lines)
            echo_policy(limit.format(1))
            *_, last = [line for line in lines if line.startswith("data: ")]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "quota_exceeded"
        next(first)  # it continues
