"""Clients that leave their streams, a hundred at once, do not end Triton; it soon works no more."""

import time

import httpx

from tests.e2e.soak_streams import abandon, assert_still_answers, read_and_leave, soak
from tests.echoing import say
from tests.running import wait_until


def test_triton_lives_through_streams_that_are_left(echo):
    statuses = soak(echo, 400)
    # What is left is still work: it holds its permits, and a full replica says so.
    assert set(statuses) <= {"HTTP/1.1 200 OK", "HTTP/1.1 503 Service Unavailable"}
    assert statuses["HTTP/1.1 200 OK"] >= 400


def _inflight(echo) -> int:
    url = f"http://127.0.0.1:{echo.admin_port}/admin/replicas"
    replicas = httpx.get(url, headers=echo.headers, timeout=10).json()["replicas"]
    return sum(replica["inflight"] for replica in replicas)


def test_what_is_left_ends_in_seconds(echo):
    text = "[delay 0.05][repeat 500] a b c"  # 75 s
    # Those of the test before are still being ended, and would be counted among these.
    wait_until(lambda: _inflight(echo) == 0, 90, "nothing is under way")
    cancelled = int(say(echo, "[cancelled]"))
    abandon(echo, text, 20)
    abandoned_at = time.monotonic()
    wait_until(lambda: int(say(echo, "[cancelled]")) == cancelled + 20, 15, "every cancel")
    assert time.monotonic() - abandoned_at < 10


def test_a_model_that_never_pauses_is_heard_to_its_end(echo):
    """It is in the midst of an answer whenever it would be cancelled."""
    triton = echo.triton()
    for _ in range(3):
        read_and_leave(echo, "[delay 0][repeat 1500] a b c d", 20, 1.0)
        time.sleep(5.5)
    assert echo.triton() == triton, echo.output
    assert_still_answers(echo)
