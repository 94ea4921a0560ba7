"""Streams that their clients leave: ``python -m tests.e2e.soak_streams [STREAMS]`` (5,000).

Rounds of 100 chat streams, closed together after their first bytes. Triton must live through all of
them: 2.51 dies when a cancel meets a stream's last answers (gateway/stream_call.py).
"""

import collections
import json
import socket
import sys
import tempfile
import time
from pathlib import Path

from tests.echoing import echoing, say
from tests.running import RunningStack

AT_ONCE = 100
TEXT = "[delay 0.01][repeat 50] a b c"


def abandon(stack: RunningStack, text: str = TEXT, at_once: int = AT_ONCE) -> collections.Counter:
    """One round; the status lines that came."""
    message = {"role": "user", "content": text}
    body = json.dumps({"model": "echo_llm", "stream": True, "messages": [message]}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {stack.key}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    statuses: collections.Counter = collections.Counter()
    address = ("127.0.0.1", stack.gateway_port)
    sockets = [socket.create_connection(address, timeout=60) for _ in range(at_once)]
    try:
        for each in sockets:
            each.sendall(head.encode() + body)
        for each in sockets:
            statuses[each.recv(100).split(b"\r\n")[0].decode()] += 1
    finally:
        for each in sockets:
            each.close()
    return statuses


def soak(stack: RunningStack, streams: int, **options) -> collections.Counter:
    """Abandon so many; AssertionError when Triton does not live through it."""
    process, statuses = stack.triton(), collections.Counter()
    while sum(statuses.values()) < streams:
        statuses += abandon(stack, **options)
    assert stack.triton() == process, stack.output
    log = (stack.home / ".tidegate" / "logs" / "triton.log").read_text(errors="replace")
    assert not [line for line in log.splitlines() if "Signal (" in line or "ASSERT" in line]
    assert "Triton hangs" not in stack.output
    assert say(stack, "still here") == "still here"
    return statuses


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model_repository").mkdir()
        with echoing(Path(folder)) as running:
            began = time.monotonic()
            found = soak(running, int([*sys.argv, "5000"][1]))
            sys.stdout.write(f"{dict(found)} in {time.monotonic() - began:.0f} s\n")
