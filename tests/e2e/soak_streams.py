"""Streams that their clients abandon: ``python -m tests.e2e.soak_streams [STREAMS]`` (5,000).

Rounds of 100 chat streams, closed together after their first bytes, until STREAMS have started:
those refused because the gateway is still ending earlier ones do not count. Triton must survive all
of them: 2.51 dies when a cancel meets a stream's last answers
(gateway/upstream/stream_call.py).
"""

import collections
import json
import select
import socket
import sys
import tempfile
import time
from pathlib import Path

from tests.echoing import echoing, say
from tests.running import RunningStack, wait_until

AT_ONCE = 100
BEGUN = "HTTP/1.1 200 OK"
TEXT = "[delay 0.01][repeat 50] a b c"


def _open_streams(stack: RunningStack, text: str, count: int) -> list[socket.socket]:
    """``count`` connections, each with a chat request for ``text`` sent."""
    message = {"role": "user", "content": text}
    request = {"model": "echo_llm", "stream": True, "max_tokens": 100000, "messages": [message]}
    body = json.dumps(request).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {stack.key}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    address = ("127.0.0.1", stack.gateway_port)
    sockets = [socket.create_connection(address, timeout=60) for _ in range(count)]
    for sock in sockets:
        sock.sendall(head.encode() + body)
    return sockets


def read_and_leave(stack: RunningStack, text: str, at_once: int, seconds: float) -> None:
    """Read ``at_once`` streams for ``seconds``, then close them together."""
    sockets, end = _open_streams(stack, text, at_once), time.monotonic() + seconds
    while (remaining_s := end - time.monotonic()) > 0:
        for sock in select.select(sockets, [], [], remaining_s)[0]:
            sock.recv(65536)
    for sock in sockets:
        sock.close()


def abandon(stack: RunningStack, text: str = TEXT, at_once: int = AT_ONCE) -> collections.Counter:
    """One round; returns the status lines, counted."""
    statuses: collections.Counter = collections.Counter()
    sockets = _open_streams(stack, text, at_once)
    try:
        for sock in sockets:
            statuses[sock.recv(100).split(b"\r\n")[0].decode()] += 1
    finally:
        for sock in sockets:
            sock.close()
    return statuses


def soak(stack: RunningStack, streams: int, **options) -> collections.Counter:
    """Abandon ``streams`` started streams; AssertionError unless Triton survives."""
    process, statuses = stack.triton(), collections.Counter()
    while statuses[BEGUN] < streams:
        statuses += abandon(stack, **options)
    assert stack.triton() == process, stack.output
    log = (stack.home / ".tidegate" / "logs" / "triton.log").read_text(errors="replace")
    assert not [line for line in log.splitlines() if "Signal (" in line or "ASSERT" in line]
    assert "Triton hangs" not in stack.output
    assert_still_answers(stack)
    return statuses


def assert_still_answers(stack: RunningStack) -> None:
    """Wait until the abandoned streams have ended: until then they may hold every permit (503)."""
    body = {"text_input": "still here", "exclude_input_in_output": True}
    url = "/v2/models/echo_llm/generate"
    wait_until(lambda: stack.post(url, json=body).status_code == 200, 60, "an answer")
    assert say(stack, "still here") == "still here"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model_repository").mkdir()
        with echoing(Path(folder)) as running:
            began = time.monotonic()
            statuses = soak(running, int([*sys.argv, "5000"][1]))
            sys.stdout.write(f"{dict(statuses)} in {time.monotonic() - began:.0f} s\n")
