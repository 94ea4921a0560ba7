"""A hundred clients that abandon their streams at once do not end Triton, and their work soon
ends."""

import time

import httpx

from tests.e2e.soak_streams import abandon, assert_still_answers, read_and_leave, soak
from tests.echoing import say
from tests.running import wait_until


def test_triton_survives_abandoned_streams(echo):
    statuses = soak(echo, 400)
    # Abandoned streams still hold their permits for a while, and a full replica answers 503.
    assert set(statuses) <= {"HTTP/1.1 200 OK", "HTTP/1.1 503 Service Unavailable"}
    assert statuses["HTTP/1.1 200 OK"] >= 400


def _inflight(echo) -> int:
    url = f"http://127.0.0.1:{echo.admin_port}/admin/replicas"
    replicas = httpx.get(url, headers=echo.headers, timeout=30).json()["replicas"]
    return sum(replica["inflight"] for replica in replicas)


def test_abandoned_work_ends_in_seconds(echo):
    text = "[delay 0.05][repeat 500] a b c"  # 75 s
    # The previous test's streams are still ending, and would be counted here.
    wait_until(lambda: _inflight(echo) == 0, 90, "nothing is under way")
    cancelled = int(say(echo, "[cancelled]"))
    abandon(echo, text, 20)
    wait_until(lambda: int(say(echo, "[cancelled]")) == cancelled + 20, 40, "every cancel")


def test_a_model_that_never_pauses_is_read_to_its_end(echo):
    """It is always in the middle of an answer when it would be cancelled."""
    triton = echo.triton()
    for _ in range(3):
        read_and_leave(echo, "[delay 0][repeat 1500] a b c d", 20, 1.0)
        time.sleep(5.5)
    assert echo.triton() == triton, echo.output
    assert_still_answers(echo)
