"""Several gateways at once on one Redis: what they admit together, and when one is killed."""

import asyncio
import subprocess
import sys
import time

from gateway.limits.limit import Subject, checks_of
from gateway.limits.limiter import Limiter
from tests.gateway.limits import hammer
from tests.gateway.limits.redis_server import RedisServer

SECONDS = 2.0
LONG_DEADLINE_S = 5.0  # no gateway may decide on its own because this machine is busy
Span = tuple[float, float, float]


def start(
    server: RedisServer, seconds: float, skew_s: float = 0, timeout_s: float = LONG_DEADLINE_S
) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            hammer.__name__,
            server.url,
            *map(str, (seconds, skew_s, timeout_s)),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )


def admissions(processes: "list[subprocess.Popen[str]]") -> list[Span]:
    """(requested, started, ended) of each."""
    spans: list[Span] = []
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    for output in outputs:
        for line in output.splitlines():
            requested, started, ended = map(float, line.split())
            spans.append((requested, started, ended))
    return spans


def elapsed_s(spans: list[Span]) -> float:
    """All was decided in this time: after the first request, before the last start."""
    return max(started for _, started, _ in spans) - min(requested for requested, _, _ in spans)


def most_at_once(spans: list[Span]) -> int:
    starts = [(started, 1) for _, started, _ in spans]
    ends = [(ended, -1) for _, _, ended in spans]
    now = most = 0
    for _, step in sorted(starts + ends):
        now += step
        most = max(most, now)
    return most


def test_no_more_than_the_limit_however_many_gateways(server: RedisServer):
    """The bound with a healthy Redis: burst + rate * time, and nothing above."""
    spans = admissions([start(server, SECONDS, skew_s=3600.0 * n) for n in range(hammer.GATEWAYS)])
    assert len(spans) <= hammer.BURST + hammer.RATE * elapsed_s(spans)
    assert len(spans) > hammer.BURST  # it does not simply refuse everything
    assert most_at_once(spans) <= hammer.AT_ONCE


def test_no_more_than_twice_the_limit_while_redis_comes_and_goes(server: RedisServer):
    """The bound with a Redis that is unavailable at times: what it admits, plus all shares."""
    running = [start(server, SECONDS, timeout_s=0.05) for _ in range(hammer.GATEWAYS)]
    assert running[0].stdout
    for _ in range(3):
        time.sleep(0.4)
        server.freeze()
        time.sleep(0.3)
        server.thaw()
    spans = admissions(running)
    once = hammer.BURST + hammer.RATE * elapsed_s(spans)
    assert len(spans) <= 2 * once + hammer.GATEWAYS
    assert len(spans) > hammer.BURST
    assert most_at_once(spans) <= 2 * hammer.AT_ONCE


async def test_what_a_killed_gateway_held_comes_back(limiter: Limiter, server: RedisServer):
    process = start(server, 30)
    assert process.stdout
    process.stdout.readline()  # it is running
    process.kill()
    process.communicate()
    checks = checks_of(hammer.LIMITS[1:], Subject("acme", "k1", "chat"))
    deadline = time.monotonic() + 20  # its lease is 2 s
    while True:
        outcome, lease = await limiter.redis.admit(checks)
        limiter.redis.settle(lease, None)
        if outcome.used == [1.0]:
            break
        assert time.monotonic() < deadline, "its slots were not given back"
        await asyncio.sleep(0.2)
