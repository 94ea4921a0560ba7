"""A language model's streams on bad days: ``python -m tests.e2e.soak_chat [HOME]``.

Serves a tiny model (or, of HOME's repository, the model ``chat``) and prints what 50 rounds of
leaving clients, 200 streams at once, clients that read a byte a second, and a minute of random
requests did to the others. ``test_chat_bad_days`` asks for less of the same.
"""

import asyncio
import collections
import contextlib
import json
import random
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.running import RunningStack, launch, stop, wait_ready, wait_until

CHAT = "/v1/chat/completions"
DONE = "data: [DONE]"
GAUGES = ("tidegate_queued", "tidegate_running", "tidegate_kv_usage")
SCHEMA = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string"}}}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


@dataclass
class Outcome:
    """How a stream ended; ``error`` is that of its status or of its last event."""

    status: int = 0
    text: str = ""
    finish_reason: str | None = None
    error: dict[str, Any] = field(default_factory=dict)
    retry_after: str | None = None
    has_left: bool = False


class ChatClients:
    """Many clients of one model. All are greedy and ask for all of ``tokens``."""

    def __init__(self, stack: RunningStack, model: str, tokens: int) -> None:
        self.stack, self.model, self.tokens = stack, model, tokens
        self.http = httpx.AsyncClient(
            base_url=stack.url,
            headers=stack.headers,
            timeout=120,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )

    def body(self, text: str, **more: Any) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": self.tokens,
            "ignore_eos": True,
            "stream": True,
            **more,
        }

    async def ask(
        self,
        text: str,
        leave_after: int = 0,
        leave_s: float | None = None,
        begun: asyncio.Event | None = None,
        **more: Any,
    ) -> Outcome:
        """One stream, left after so many events or seconds; ``begun`` is set at its first text."""
        outcome = Outcome()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(leave_s):
                await self._read(outcome, self.body(text, **more), leave_after, begun)
                return outcome
        outcome.has_left = True
        return outcome

    async def _read(
        self,
        outcome: Outcome,
        body: dict[str, Any],
        leave_after: int,
        begun: asyncio.Event | None,
    ) -> None:
        async with self.http.stream("POST", CHAT, json=body) as response:
            outcome.status = response.status_code
            outcome.retry_after = response.headers.get("retry-after")
            if outcome.status != 200:
                outcome.error = json.loads(await response.aread())["error"]
                return
            events = 0
            async for line in response.aiter_lines():
                if line == DONE or not line.startswith("data: "):
                    continue
                event = json.loads(line[6:])
                outcome.error = event.get("error", {})
                for choice in event.get("choices", ()):
                    outcome.text += choice["delta"].get("content") or ""
                    outcome.finish_reason = choice["finish_reason"] or outcome.finish_reason
                if begun and outcome.text:
                    begun.set()
                events += 1
                if events == leave_after:
                    outcome.has_left = True
                    return

    async def together(self, texts: list[str], **more: Any) -> list[Outcome]:
        return await asyncio.gather(*(self.ask(text, **more) for text in texts))

    def metrics(self) -> dict[str, float]:
        """The engine's own, by name."""
        text = httpx.get(f"http://127.0.0.1:{self.stack.metrics_port}/metrics").text
        return {
            line.partition("{")[0]: float(line.rsplit(maxsplit=1)[1])
            for line in text.splitlines()
            if line.startswith("tidegate_") and f'model="{self.model}"' in line
        }

    def wait_idle(self) -> None:
        """Until nothing waits, runs or is kept in the KV cache."""
        gauges: dict[str, float] = {}

        def is_idle() -> bool:
            gauges.update(self.metrics())
            return not any(gauges.get(name, 1.0) for name in GAUGES)

        wait_until(is_idle, 60, f"idle again: {gauges}")

    def engine(self) -> psutil.Process:
        """The engine's process."""
        return next(
            process
            for process in self.stack.family()
            if any(word.endswith("lm_engine.py") for word in process.cmdline())
            and f"/{self.model}/" in process.cmdline()[-1]
        )


def prompts(count: int, words: int) -> list[str]:
    """Texts of growing length, the longest of about ``words`` words."""
    return [f"Number {i}: " + "word " * (i * words // count) for i in range(count)]


async def leaving_rounds(clients: ChatClients, rounds: int, words: int) -> int:
    """One of eight clients leaves: in decode, in prefill or queue. Returns how many of the others'
    texts differ from those of an undisturbed round."""
    texts, dice, differ = prompts(8, words), random.Random(5), 0  # noqa: S311
    undisturbed = [await clients.ask(text) for text in texts]
    assert all(one.finish_reason == "length" for one in undisturbed), undisturbed
    for number in range(rounds):
        leaver = dice.randrange(8)
        how: dict[str, Any] = {"leave_s": dice.random() * (0.05, 0.6)[number % 2]}
        if number % 3 == 0:
            how = {"leave_after": dice.randrange(1, clients.tokens // 3)}
        outcomes = await asyncio.gather(
            *(clients.ask(text, **how if i == leaver else {}) for i, text in enumerate(texts))
        )
        differ += sum(
            (one.text, one.finish_reason) != (undisturbed[i].text, "length")
            for i, one in enumerate(outcomes)
            if i != leaver
        )
    clients.wait_idle()
    return differ


async def all_at_once(clients: ChatClients, streams: int) -> collections.Counter[str]:
    """Counts ``same``, ``refused`` (503 and Retry-After) and what else there should not be."""
    texts = [f"Number {i % 10}" for i in range(streams)]
    alone = {text: (await clients.ask(text)).text for text in texts[:10]}
    counts: collections.Counter[str] = collections.Counter()
    for text, one in zip(texts, await clients.together(texts), strict=True):
        if one.status == 503 and one.retry_after:
            counts["refused"] += 1
        elif one.finish_reason == "length":
            counts["same" if one.text == alone[text] else "different"] += 1
        else:
            counts[f"{one.status} {one.error}"] += 1
    clients.wait_idle()
    return counts


@contextlib.contextmanager
def slow_readers(clients: ChatClients, count: int) -> Any:
    """Streams with log-probabilities, whose clients take what comes a byte at a time, as far as the
    caller reads it."""
    body = json.dumps(clients.body("slow", logprobs=True)).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {clients.stack.key}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    sockets = []
    for _ in range(count):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", clients.stack.gateway_port))
        connection.sendall(head.encode() + body)
        sockets.append(connection)
    try:
        yield sockets
    finally:
        for connection in sockets:
            connection.close()


def random_request(clients: ChatClients, dice: random.Random) -> dict[str, Any]:
    """What to ask ``_any`` for."""
    grammar = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    kinds: list[dict[str, Any]] = [
        {"leave_after": dice.randrange(1, 20)},
        {"leave_s": dice.random()},
        {"max_tokens": 10_000_000},
        {"messages": []},
        {"messages": [{"role": "wizard", "content": "x"}]},
        {"messages": [{"role": "user", "content": "word " * 100_000}]},
        {"messages": [{"role": "user", "content": "word " * 5000}], "truncate_prompt_tokens": -1},
        {"response_format": grammar, "ignore_eos": False},
        {"response_format": {"type": "json_object"}, "ignore_eos": False},
        {"tools": [TOOL], "tool_choice": "required", "ignore_eos": False},
        {"n": 8, "temperature": 1.0},
        {"logprobs": True},
        {"stop": ["never comes"]},
        {"temperature": 1.5, "top_p": 0.5, "seed": dice.randrange(9)},
        {"logit_bias": {"1": 1}},
        {"stream": False},
    ]
    return dice.choice(kinds)


async def attack(clients: ChatClients, seconds: float, at_once: int) -> collections.Counter[int]:
    """Random requests; returns their statuses. Fails unless all is as before afterwards."""
    dice, statuses = random.Random(7), collections.Counter[int]()  # noqa: S311
    before = await clients.ask("before")
    until = time.monotonic() + seconds

    async def client() -> None:
        while time.monotonic() < until:
            asked = random_request(clients, dice)
            if asked.get("stream") is False:
                reply = await clients.http.post(CHAT, json=clients.body("whole", **asked))
                statuses[reply.status_code] += 1
                continue
            outcome = await clients.ask(f"Number {dice.randrange(99)}", **asked)
            statuses[499 if outcome.has_left else outcome.status] += 1
            assert outcome.status in (0, 200, 400, 413, 429, 503), outcome
            assert outcome.status != 200 or outcome.has_left or not outcome.error, outcome

    await asyncio.gather(*(client() for _ in range(at_once)))
    clients.wait_idle()
    after = await clients.ask("before")
    assert (after.text, after.finish_reason) == (before.text, "length"), after
    return statuses


def memory_mb(clients: ChatClients) -> dict[str, int]:
    """Resident, of the stack's larger processes."""
    sizes = {}
    for process in clients.stack.family():
        with contextlib.suppress(psutil.Error):
            size = process.memory_info().rss // 2**20
            if size > 30:
                sizes[f"{Path(process.cmdline()[-1]).name}:{process.pid}"] = size
    return sizes


async def _soak(clients: ChatClients, words: int) -> None:
    def say(text: str) -> None:
        sys.stdout.write(f"{text}; {clients.metrics()}\n  MB {memory_mb(clients)}\n")
        sys.stdout.flush()

    began = time.monotonic()
    differ = await leaving_rounds(clients, 50, words)
    say(f"50 rounds in {time.monotonic() - began:.0f} s: {differ} of 350 texts differ")
    began = time.monotonic()
    counts = await all_at_once(clients, 200)
    say(f"200 at once in {time.monotonic() - began:.0f} s: {dict(counts)}")
    texts = prompts(4, words)
    rounds = []
    with slow_readers(clients, 3) as sockets:
        for _ in range(5):
            began = time.monotonic()
            await clients.together(texts)
            rounds.append(f"{time.monotonic() - began:.1f}")
            for connection in sockets:
                connection.recv(1)
    began = time.monotonic()
    await clients.together(texts)
    say(
        f"beside 3 slow readers 4 streams took {', '.join(rounds)} s, alone "
        f"{time.monotonic() - began:.1f} s"
    )
    for _ in range(2):
        statuses = await attack(clients, 30, 16)
        say(f"{sum(statuses.values())} random requests: {dict(statuses)}")
    await clients.http.aclose()


if __name__ == "__main__":
    from tests.e2e.test_chat_bad_days import TOKENS, converted

    with tempfile.TemporaryDirectory() as folder:
        own = sys.argv[1:] == []
        home = converted(Path(folder)) if own else Path(sys.argv[1])
        name = "tiny_chat" if own else "chat"
        running = launch(home, name)
        try:
            wait_ready(running)
            asyncio.run(_soak(ChatClients(running, name, TOKENS if own else 100), 120))
        finally:
            stop(running)
