"""kill -9 of each process of the stack, under load: errors are clear, and the stack heals
itself."""

import collections
import threading

import httpx
import pytest

from tests.running import QUICK, RunningStack, launch, stop, wait_ready, wait_until

# A request may wait for a restart, but it never hangs.
HANG_S = 30.0
HEAL_S = 30.0
STEPS = ("text_embedding_pre", "text_embedding_onnx")


class Load:
    """A few clients that call back to back, and the statuses they got."""

    def __init__(self, stack: RunningStack, clients: int = 4) -> None:
        self._stack, self._stopped = stack, threading.Event()
        self.statuses: collections.Counter[int] = collections.Counter()
        self.bodies: dict[int, str] = {}
        self._threads = [threading.Thread(target=self._call) for _ in range(clients)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _call(self) -> None:
        url, body = f"{self._stack.url}/v1/text_embedding", {"text": "Where is my parcel?"}
        with httpx.Client(headers=self._stack.headers, timeout=HANG_S) as client:
            while not self._stopped.is_set():
                try:
                    response = client.post(url, json=body)
                except httpx.TimeoutException:
                    self.statuses[0] += 1
                    continue
                self.statuses[response.status_code] += 1
                self.bodies[response.status_code] = response.text


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
    with Load(own_stack) as load:
        wait_until(lambda: load.statuses[200] > 20, 20, "answers before the kill")
        own_stack.stubs(model)[0].kill()
        wait_until(
            lambda: own_stack.output.count(f"revived {model}") > count_before, HEAL_S, "revival"
        )
        wait_until(lambda: _serves(own_stack), HEAL_S, "service after the revival")
    assert set(load.statuses) <= {200, 502, 503}, load.bodies
    assert "stub" not in str(load.bodies).lower()
    assert "/dev/shm" not in str(load.bodies)


def test_a_killed_triton_is_started_again(own_stack):
    stubs = [stub for model in STEPS for stub in own_stack.stubs(model)]
    assert len(stubs) >= 3
    with Load(own_stack) as load:
        wait_until(lambda: load.statuses[200] > 20, 20, "answers before the kill")
        own_stack.triton().kill()
        wait_until(lambda: load.statuses[503] > 0, 10, "a clear answer while it is down")
        wait_until(lambda: "Triton is serving again" in own_stack.output, HEAL_S, "restart")
        wait_until(lambda: _serves(own_stack), HEAL_S, "service after the restart")
    assert set(load.statuses) <= {200, 502, 503}, load.bodies
    # They would outlive their server, at 165 MB each.
    assert not [stub for stub in stubs if stub.is_running()]


def test_a_503_says_when_to_come_back(own_stack):
    own_stack.triton().kill()

    def refused() -> bool:
        response = own_stack.post("/v1/text_embedding", json={"text": "hello"})
        return response.status_code == 503 and response.headers["retry-after"] == "1"

    wait_until(refused, 5, "a 503 with Retry-After")
    wait_until(lambda: httpx.get(f"{own_stack.url}/readyz").status_code == 503, 5, "not ready")
    wait_until(lambda: _serves(own_stack), HEAL_S, "service after the restart")


def test_a_killed_gateway_is_started_again(own_stack):
    gateway = next(p for p in own_stack.family() if "gateway" in p.cmdline())
    gateway.kill()
    wait_until(lambda: "the gateway ended unexpectedly" in own_stack.output, 10, "notice")

    def answers() -> bool:
        try:
            return _serves(own_stack)
        except httpx.TransportError:
            return False

    wait_until(answers, HEAL_S, "service after the restart")
