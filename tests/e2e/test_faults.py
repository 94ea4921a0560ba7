"""kill -9 of each process of the stack, under load: errors are clear, and the stack heals
itself."""

import httpx
import pytest

from tests.back_to_back import PAUSE_S, Calls, back_to_back
from tests.running import QUICK, RunningStack, launch, stop, wait_ready, wait_until

# A request may wait for a restart, but it never hangs.
HANG_S = 60.0
HEAL_S = 120.0
BODY = {"text": "Where is my parcel?"}
STEPS = ("text_embedding_pre", "text_embedding_onnx")


def _load(stack: RunningStack):
    """A few clients that call back to back; the count of each (status, text of an error)."""

    def call(client: httpx.Client) -> tuple[int, str]:
        response = client.post(f"{stack.url}/v1/text_embedding", json=BODY, headers=stack.headers)
        return response.status_code, "" if response.is_success else response.text

    return back_to_back(call, lambda: httpx.Client(timeout=HANG_S), 4, PAUSE_S)


def _answered(calls: Calls, status: int) -> int:
    return sum(count for (code, _), count in calls.counts.items() if code == status)


@pytest.fixture(scope="module")
def own_stack(built):
    running = launch(built, *QUICK)
    wait_ready(running)
    yield running
    assert stop(running) == 0


def _serves(stack: RunningStack) -> bool:
    """Twenty good answers in a row, so that each instance was used, and /readyz agrees."""
    body = {"text": "hello"}
    return all(
        stack.post("/v1/text_embedding", json=body).status_code == 200 for _ in range(20)
    ) and (httpx.get(f"{stack.url}/readyz").status_code == 200)


@pytest.mark.parametrize("model", ["text_embedding_pre", "text_embedding_onnx"])
def test_a_killed_model_process_is_revived(own_stack, model):
    count_before = own_stack.output.count(f"revived {model}")
    with _load(own_stack) as calls:
        wait_until(lambda: _answered(calls, 200) > 20, 30, "answers before the kill")
        own_stack.stubs(model)[0].kill()
        wait_until(
            lambda: own_stack.output.count(f"revived {model}") > count_before, HEAL_S, "revival"
        )
        wait_until(lambda: _serves(own_stack), HEAL_S, "service after the revival")
    assert {status for status, _ in calls.counts} <= {200, 502, 503}, calls.counts
    assert "stub" not in str(calls.counts).lower()
    assert "/dev/shm" not in str(calls.counts)


def test_a_killed_triton_is_started_again(own_stack):
    stubs = [stub for model in STEPS for stub in own_stack.stubs(model)]
    assert len(stubs) >= 3
    with _load(own_stack) as calls:
        wait_until(lambda: _answered(calls, 200) > 20, 30, "answers before the kill")
        own_stack.triton().kill()
        wait_until(lambda: _answered(calls, 503) > 0, 30, "a clear answer while it is down")
        wait_until(lambda: "Triton is serving again" in own_stack.output, HEAL_S, "restart")
        wait_until(lambda: _serves(own_stack), HEAL_S, "service after the restart")
    assert {status for status, _ in calls.counts} <= {200, 502, 503}, calls.counts
    # They would outlive their server, at 165 MB each.
    assert not [stub for stub in stubs if stub.is_running()]


def test_a_503_says_when_to_come_back(own_stack):
    own_stack.triton().kill()

    def refused() -> bool:
        response = own_stack.post("/v1/text_embedding", json={"text": "hello"})
        return response.status_code == 503 and response.headers["retry-after"] == "1"

    wait_until(refused, 30, "a 503 with Retry-After")
    wait_until(lambda: httpx.get(f"{own_stack.url}/readyz").status_code == 503, 30, "not ready")
    wait_until(lambda: _serves(own_stack), HEAL_S, "service after the restart")


def test_a_killed_gateway_is_started_again(own_stack):
    gateway = next(p for p in own_stack.family() if "gateway" in p.cmdline())
    gateway.kill()
    wait_until(lambda: "the gateway ended unexpectedly" in own_stack.output, 30, "notice")

    def answers() -> bool:
        try:
            return _serves(own_stack)
        except httpx.TransportError:
            return False

    wait_until(answers, HEAL_S, "service after the restart")
