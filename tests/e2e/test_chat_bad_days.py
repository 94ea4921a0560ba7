"""A language model's streams survive what happens to the others, and to their engine."""

import asyncio
import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.back_to_back import back_to_back
from tests.command_line import tidegate
from tests.e2e.soak_chat import (
    CHAT,
    ChatClients,
    all_at_once,
    attack,
    leaving_rounds,
    prompts,
    slow_readers,
)
from tests.running import (
    RunningStack,
    launch,
    policy_of,
    put_policy,
    stop,
    wait_ready,
    wait_until,
)
from tests.tiny_models import language_model

TOKENS = 200
FLOOD = 100  # connections that ask for whole texts back to back
LONG = "word " * 1000


def converted(home: Path) -> Path:
    """``home``, with the tiny model ``tiny_chat``, whose context is 512 tokens."""
    source = language_model(home / "source")
    arguments = ("--task", "causal-lm", "--name", "tiny_chat")
    done = tidegate(home, "convert", str(source), *arguments)
    assert done.returncode == 0, done.stderr
    return home


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatClients]:
    stack = launch(converted(tmp_path_factory.mktemp("bad_days")), "tiny_chat")
    try:
        wait_ready(stack)
        yield ChatClients(stack, "tiny_chat", TOKENS)
    finally:
        assert stop(stack) == 0, stack.output


def test_seven_streams_do_not_notice_the_eighth(clients):
    assert asyncio.run(leaving_rounds(clients, 4, 120)) == 0


def test_more_streams_than_fit_are_complete_or_refused(clients):
    counts = asyncio.run(all_at_once(clients, 100))
    assert set(counts) <= {"same", "refused"}
    assert counts["same"] >= 64


def test_slow_readers_hold_nothing(clients):
    """What they have not read is with the gateway and the kernel: the engine is free."""

    async def beside() -> None:
        texts = prompts(4, 100)
        alone = [await clients.ask(text) for text in texts]
        with slow_readers(clients, 4) as sockets:
            for connection in sockets:
                assert connection.recv(1) == b"H"
            assert await clients.together(texts) == alone
            clients.wait_idle()

    asyncio.run(beside())


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role must be one of"),
        ({"max_tokens": 10_000_000}, "'max_tokens' must be 1 to"),
        ({"messages": [{"role": "user", "content": LONG}]}, "the context holds 512"),
        ({"truncate_prompt_tokens": 0}, "must not be 0"),
        ({"truncate_prompt_tokens": 512}, "must be below the context of 512 tokens"),
    ],
)
def test_what_cannot_be_is_refused_by_name(clients, asked, words):
    reply = clients.stack.post(CHAT, json=clients.body("x", **asked))
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert words in error["message"]
    assert (error["code"] == "context_length_exceeded") == ("the context holds" in words)


@pytest.mark.parametrize(
    "asked",
    [
        {"stop": ["a text that never comes"]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {
            "$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "required": ["a"],
            "properties": {"a": {"$ref": "#/$defs/a"}}, "additionalProperties": False}}}}}},
    ],
)  # fmt: skip
def test_what_never_ends_ends_with_its_tokens(clients, asked):
    outcome = asyncio.run(clients.ask("x", **asked))
    assert outcome.finish_reason == "length"


@pytest.mark.parametrize(("keep", "tokens"), [(50, 50), (-1, 512 - TOKENS)])
def test_a_long_prompt_is_cut_from_the_left_if_asked(clients, keep, tokens):
    body = clients.body(LONG, stream=False, truncate_prompt_tokens=keep)
    reply = clients.stack.post(CHAT, json=body).json()
    assert reply["usage"]["prompt_tokens"] == tokens
    assert reply["usage"]["completion_tokens"] == TOKENS


def test_random_requests_leave_nothing_behind(clients):
    statuses = asyncio.run(attack(clients, 4, 8))
    assert {200, 400} <= set(statuses)


def _key(stack: RunningStack, tenant: str) -> dict[str, str]:
    """The headers of a new key of the tenant."""
    created = stack.tidegate("keys", "create", tenant, "--tenant", tenant, "--json")
    return {"Authorization": f"Bearer {json.loads(created.stdout)['key']}"}


def _first_text_s(client: httpx.Client, clients: ChatClients) -> float:
    """The seconds until the first text of a short stream, which is read to its end."""
    began, first_s = time.perf_counter(), 0.0
    with client.stream("POST", CHAT, json=clients.body("y", max_tokens=16)) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if first_s or not line.startswith("data: {"):
                continue
            if any(choice["delta"].get("content") for choice in json.loads(line[6:])["choices"]):
                first_s = time.perf_counter() - began
    assert first_s
    return first_s


def test_a_flood_of_one_tenant_is_hardly_felt_by_another_on_the_real_engine(clients):
    """None of the other's texts is refused, and they begin long before those of the flood would."""
    stack = clients.stack
    tenants = "".join(f'[tenants.{name}]\nmodels = ["*"]\n' for name in ("default", "a", "b"))
    with policy_of(stack.home):
        put_policy(stack, tenants)
        flooding, quiet = _key(stack, "a"), _key(stack, "b")

        def connect(headers: dict[str, str] = flooding) -> httpx.Client:
            return httpx.Client(base_url=stack.url, headers=headers, timeout=120)

        def flood(client: httpx.Client) -> int:
            return client.post(CHAT, json=clients.body("x", stream=False)).status_code

        with connect(quiet) as client:
            wait_until(lambda: client.get("/v1/models").status_code == 200, 30, "the keys")
            idle = [_first_text_s(client, clients) for _ in range(10)]
            with back_to_back(flood, connect, FLOOD) as calls:
                calls.more(FLOOD, 120)
                sent, began = calls.counts.total(), time.perf_counter()
                busy = []
                for _ in range(30):
                    busy.append(_first_text_s(client, clients))
                    time.sleep(0.1)
                rate = (calls.counts.total() - sent) / (time.perf_counter() - began)
        flooded_s = FLOOD / rate  # for each of its texts, by Little's law
        sys.stdout.write(
            f"\nfirst text: idle p50 {1000 * np.median(idle):.0f} ms, "
            f"p99 {1000 * np.quantile(idle, 0.99):.0f} ms; "
            f"beside {FLOOD} connections p50 {1000 * np.median(busy):.0f} ms, "
            f"p99 {1000 * np.quantile(busy, 0.99):.0f} ms, none of {len(busy)} refused; a text of "
            f"the flood took {flooded_s:.1f} s; {dict(calls.counts)} of the flood\n"
        )
    # In one queue it would begin after as many texts as the flood has there.
    assert np.median(busy) < flooded_s / 2


async def _begun(clients, count: int) -> list[asyncio.Task]:
    """Long streams, the first of which has begun."""
    begun = asyncio.Event()
    streams = [
        asyncio.create_task(clients.ask("x", begun=begun, max_tokens=480)) for _ in range(count)
    ]
    async with asyncio.timeout(60):
        await begun.wait()
    return streams


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_an_engine_that_dies_or_hangs_says_so_and_is_replaced(clients, number):
    """Triton and its other models go on, so does the model's process in Triton."""
    stack, engine, triton = clients.stack, clients.engine(), clients.stack.triton()
    restarts = clients.metrics()["tidegate_engine_restarts"]

    async def disturbed() -> None:
        expected = await clients.ask("x")
        streams = await _begun(clients, 24)
        engine.send_signal(number)
        outcomes = await asyncio.gather(*streams)
        failed = [one for one in outcomes if one.error]
        assert failed
        for one in failed:
            assert one.status == 200 or (one.status == 503 and one.retry_after), one
        for _ in range(600):
            again = await clients.ask("x")
            if again.status == 200:
                break
            assert (again.status, bool(again.retry_after)) == (503, True), again
            await asyncio.sleep(0.1)
        assert again == expected

    asyncio.run(disturbed())
    assert clients.engine().pid != engine.pid
    assert stack.triton().pid == triton.pid
    assert clients.metrics()["tidegate_engine_restarts"] == restarts + 1
    log = (stack.home / ".tidegate" / "logs" / "triton.log").read_text(errors="replace")
    why = "killed by SIGKILL" if number == signal.SIGKILL else "it has been stopped for"
    assert f"the engine has ended ({why}" in log


def test_streams_end_when_triton_does_and_come_back(clients):
    async def disturbed() -> None:
        expected = await clients.ask("x")
        streams = await _begun(clients, 24)
        clients.stack.triton().kill()
        outcomes = await asyncio.gather(*streams)
        assert any(one.status == 200 and one.error for one in outcomes), outcomes
        assert all(one.error or one.finish_reason for one in outcomes), outcomes

        for _ in range(600):
            if await clients.ask("x") == expected:
                return
            await asyncio.sleep(0.2)
        pytest.fail(clients.stack.output)

    asyncio.run(disturbed())
