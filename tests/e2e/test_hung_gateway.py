"""A stack whose gateway hangs, wholly or partly, and one whose disk is not writable."""

import contextlib
import os
import shutil
import signal
import threading
import time

import httpx
import psutil
import pytest

from tests.running import ROOT, RunningStack, launch, stop, wait_ready, wait_until
from tests.serving.small_pipeline import publish_staged, stage

HEAL_S = 120.0
# The engine of ``mood``: the golden sample (1) takes 5.5 s, longer than the watcher's round of 5 s,
# anything else 0.1 s. Two workers and the watcher send one each, now and then a second one: a
# request waits behind them, and its deadline is 30 s.
SLOW = (
    "self._number = lambda value, n=self._number: "
    "(time.sleep(5.5 if value.item() == 1 else 0.1), n(value))[1]"
)


def _stack(home, *arguments: str) -> RunningStack:
    models = home / "model_repository"
    shutil.copytree(ROOT / "model_repository" / "identity_fp32", models / "identity_fp32")
    return launch(home, "identity_fp32", *arguments)


def _is_answering(stack: RunningStack) -> bool:
    try:
        response = httpx.get(f"{stack.url}/readyz", timeout=10)
    except httpx.TransportError:
        return False
    return response.status_code == 200


def _gateway(stack: RunningStack) -> psutil.Process:
    return next(p for p in stack.family() if p.cmdline()[1:] == ["-m", "gateway"])


def _workers(stack: RunningStack) -> list[psutil.Process]:
    """The worker ids of the running gateway; [] while there is none."""
    workers = []
    with contextlib.suppress(psutil.Error, StopIteration):
        children = _gateway(stack).children()
        workers += [p for p in children if any("multiprocessing.spawn" in w for w in p.cmdline())]
    return workers


def _events(stack: RunningStack) -> str:
    return (stack.home / ".tidegate" / "logs" / "events.jsonl").read_text()


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    stack = _stack(tmp_path_factory.mktemp("one"))
    try:
        wait_ready(stack)
        yield stack
    finally:
        stop(stack)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two workers, and a pipeline whose golden sample takes longer than a round of probes: that it
    starts at all shows that ``up`` and the gateway wait for it."""
    home = tmp_path_factory.mktemp("two")
    repository = home / "model_repository"
    publish_staged(stage(repository, 0, initialize=SLOW), repository)
    stack = _stack(home, "mood", "--workers=2")
    try:
        wait_ready(stack)
        wait_until(lambda: len(_workers(stack)) == 2, 30, "two workers")
        yield stack
    finally:
        stop(stack)


def test_a_gateway_that_is_stopped_is_started_again(one):
    before = _gateway(one)
    before.suspend()
    wait_until(lambda: f"the gateway hangs (process {before.pid}" in one.output, HEAL_S, "notice")
    wait_until(lambda: _is_answering(one), HEAL_S, "service")
    assert _gateway(one) != before
    for event in ("gateway_hung", "gateway_died", "gateway_restarted"):
        wait_until(lambda event=event: f'"event": "{event}"' in _events(one), 30, event)


def test_a_slow_model_under_ten_times_its_capacity_is_served_and_left_alone(two):
    """Every request is answered, and no check finds it unready."""
    engines = {stub.pid for stub in two.stubs("mood_onnx")}
    until = time.monotonic() + 15
    statuses: list[int] = []

    def call() -> None:
        with httpx.Client(headers=two.headers, timeout=60) as client:
            while time.monotonic() < until:
                statuses.append(client.post(f"{two.url}/v1/mood", json={"x": 2}).status_code)

    threads = [threading.Thread(target=call) for _ in range(24)]
    for thread in threads:
        thread.start()
    looks = []
    while any(thread.is_alive() for thread in threads):
        look = httpx.get(f"{two.url}/readyz", timeout=30)
        looks.append((look.status_code, look.text))
        time.sleep(0.5)
    assert set(statuses) == {200}
    assert {status for status, _ in looks} == {200}, set(looks)
    assert {stub.pid for stub in two.stubs("mood_onnx")} == engines
    assert _events(two) == ""


def test_one_of_two_workers_that_is_stopped_is_replaced_and_the_other_goes_on(two):
    parent, workers = _gateway(two), _workers(two)
    workers[0].suspend()
    wait_until(
        lambda: f"the gateway hangs (process {workers[0].pid}" in two.output, HEAL_S, "notice"
    )
    wait_until(lambda: len(set(_workers(two)) - {workers[0]}) == 2, HEAL_S, "another worker")
    wait_until(lambda: '"gateway_hung"' in _events(two), 30, "the event")
    assert _gateway(two) == parent
    assert workers[1] in _workers(two)
    # A new worker says that it is not ready until it has probed the models, which are slow here.
    assert all(httpx.get(f"{two.url}/healthz", timeout=20).is_success for _ in range(10))
    wait_until(lambda: all(_is_answering(two) for _ in range(10)), HEAL_S, "readiness")


def test_a_parent_of_workers_that_is_stopped_is_started_again_with_them(two):
    parent, workers = _gateway(two), _workers(two)
    parent.suspend()
    wait_until(lambda: f"the gateway hangs (process {parent.pid}" in two.output, HEAL_S, "notice")
    wait_until(
        lambda: _is_answering(two) and len(set(_workers(two)) - set(workers)) == 2,
        HEAL_S,
        "service",
    )
    assert not set(workers) & set(_workers(two))
    assert not any(worker.is_running() for worker in workers)


def test_folders_that_cannot_be_written_stop_no_healing(one):
    """The logs and counters are folders, the lists of servers files: Triton and the gateway are
    still restarted, and the problem is reported."""
    state = one.home / ".tidegate"
    logs = state / "logs"
    moved = [(logs / "events.jsonl"), (logs / "gateway.log"), (logs / "triton.log")]
    moved.append(state / "watch.prom")
    for path in moved:
        path.unlink(missing_ok=True)
        path.mkdir()
    for servers in (state / "servers", one.home / ".model_repository.staging" / "servers"):
        shutil.rmtree(servers)
        servers.write_text("not a folder")
    one.triton().kill()
    wait_until(lambda: "Triton is serving again" in one.output, HEAL_S, "Triton")
    gateway = _gateway(one)
    gateway.kill()
    wait_until(lambda: one.output.count("the gateway ended unexpectedly") >= 1, HEAL_S, "notice")
    wait_until(lambda: _is_answering(one), HEAL_S, "service")
    assert _gateway(one) != gateway
    for message in (
        "events are not recorded",
        "Triton's log is not written",
        "publishers will not find",
    ):
        assert one.output.count(message) == 1, one.output
    assert one.process.poll() is None


def test_workers_whose_parent_was_killed_make_room_and_a_stopped_triton_is_replaced(two):
    parent, workers = _gateway(two), _workers(two)
    parent.kill()
    wait_until(lambda: not any(worker.is_running() for worker in workers), HEAL_S, "their end")
    wait_until(lambda: _is_answering(two) and len(_workers(two)) == 2, HEAL_S, "service")
    before = two.output.count("the gateway ended unexpectedly")
    assert before == 2  # once for each of the last two tests: the successor had the port
    triton = two.triton()
    os.kill(triton.pid, signal.SIGSTOP)
    wait_until(lambda: "Triton hangs" in two.output, 60, "notice")
    wait_until(lambda: "Triton is serving again" in two.output, HEAL_S, "restart")
    wait_until(lambda: _is_answering(two), HEAL_S, "service")
    assert '"triton_hung"' in _events(two)
