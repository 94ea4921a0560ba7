"""Clients that call back to back while a test does something to the servers.

    def call(client: httpx.Client) -> int:
        return client.post(url, json={"x": 1}).status_code

    with back_to_back(call, clients=4) as calls:
        server.kill()
        calls.more(100)
    assert set(calls.counts) == {200}

What a call returns is counted; a call that raises has failed. When the clients have stopped, none
may have failed, unless the test says that it looks at ``failures`` itself. Where the load itself is
not what is tested, a pause (``PAUSE_S``) leaves the processor to what happens meanwhile.
"""

import collections
import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx

from tests.running import wait_until

PAUSE_S = 0.01


class Calls:
    """``counts``: how many calls returned what; ``failures``: what the others raised."""

    def __init__(self) -> None:
        self.counts: collections.Counter[Any] = collections.Counter()
        self.failures: list[str] = []

    @property
    def sent(self) -> int:
        return self.counts.total() + len(self.failures)

    def more(self, count: int, within_s: float = 30) -> None:
        """Wait until ``count`` more calls have ended."""
        before = self.sent
        wait_until(lambda: self.sent >= before + count, within_s, f"{count} more calls")


@contextlib.contextmanager
def back_to_back(
    call: Callable[[Any], Hashable],
    connect: Callable[[], AbstractContextManager[Any]] = lambda: httpx.Client(timeout=30),
    clients: int = 3,
    pause_s: float = 0.0,
    may_fail: bool = False,
) -> Iterator[Calls]:
    """``clients`` threads, each with a connection of its own, that ``call`` until the end."""
    calls, stopped, lock = Calls(), threading.Event(), threading.Lock()

    def run() -> None:
        with connect() as client:
            while not stopped.is_set():
                try:
                    outcome = call(client)
                except Exception as error:
                    with lock:
                        calls.failures.append(f"{type(error).__name__}: {error}")
                else:
                    with lock:
                        calls.counts[outcome] += 1
                stopped.wait(pause_s)

    threads = [threading.Thread(target=run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield calls
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
    assert may_fail or not calls.failures, calls.failures
