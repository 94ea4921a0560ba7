"""A limit holds over several workers with Redis, and nobody hangs when Redis is frozen."""

import collections
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.gateway.limits.redis_server import RedisServer
from tests.running import launch, policy_of, stop, wait_ready, wait_until

AMOUNT = 20
POLICY = f"""
[[limits]]
scope = "key"
kind = "requests"
amount = {AMOUNT}
window_s = 600
models = ["identity_fp32"]
"""
VALUES = {"inputs": [{"name": "INPUT0", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
URL = "/v2/models/identity_fp32/infer"


@pytest.fixture(scope="module")
def shared(built):
    """Two workers, one Redis, and that policy."""
    server = RedisServer()
    try:
        with policy_of(built, POLICY):
            running = launch(built, "identity_fp32", "--workers=2", TIDEGATE_REDIS_URL=server.url)
            try:
                wait_ready(running, 90)
                yield running, server
            finally:
                server.thaw()
                assert stop(running) == 0
    finally:
        server.kill()


def _key(running, name):
    return running.tidegate("keys", "create", name).stdout.strip().splitlines()[-1]


def _ask(running, key):
    """A connection of its own: the kernel spreads them over the workers."""
    started = time.monotonic()
    answer = httpx.post(
        running.url + URL, json=VALUES, headers={"Authorization": f"Bearer {key}"}, timeout=20
    )
    return answer.status_code, time.monotonic() - started


def test_two_workers_count_together(shared):
    running, _ = shared
    key = _key(running, "together")
    wait_until(
        lambda: (
            httpx.get(running.url + "/v2", headers={"Authorization": f"Bearer {key}"}).status_code
            == 200
        ),
        5,
        "the key",
    )
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: _ask(running, key), range(3 * AMOUNT)))
    assert collections.Counter(status for status, _ in answers) == {200: AMOUNT, 429: 2 * AMOUNT}


def test_a_frozen_redis_costs_nobody_more_than_a_moment(shared):
    """Each worker gives out its half: never a hang, never more than the bound of docs/limits.md."""
    running, server = shared
    key = _key(running, "frozen")
    wait_until(
        lambda: (
            httpx.get(running.url + "/v2", headers={"Authorization": f"Bearer {key}"}).status_code
            == 200
        ),
        5,
        "the key",
    )
    server.freeze()
    try:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: _ask(running, key), range(3 * AMOUNT)))
    finally:
        server.thaw()
    statuses = collections.Counter(status for status, _ in answers)
    assert set(statuses) <= {200, 429}
    assert AMOUNT // 2 <= statuses[200] <= 2 * AMOUNT + 2
    assert max(seconds for _, seconds in answers) < 5
