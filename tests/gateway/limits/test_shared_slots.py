"""Workers of one machine share the slots of a small limit; a tenant's buckets are bounded."""

import multiprocessing
import os
import signal
import time

import pytest

from gateway.limits import local
from gateway.limits.limit import Subject, checks_of
from gateway.limits.local import LocalStore
from gateway.limits.shared_slots import SharedSlots
from tests.gateway.limits.made import limit_of

SUBJECT = Subject("acme", "k1", "chat")
WORKERS = 3


def _work(path, amount: int, highest, lock, together, rounds: int) -> None:
    """Take a slot, be counted while holding it, and free it; again and again."""
    store = LocalStore(1 / WORKERS, SharedSlots(path))
    limit = limit_of("key", "concurrency", amount)
    checks = checks_of([limit], SUBJECT)
    admitted = 0
    together.wait(30)
    deadline = time.monotonic() + 20
    while admitted < rounds and time.monotonic() < deadline:
        if not store.admit(checks, 0.0).admitted:
            time.sleep(0.001)
            continue
        admitted += 1
        with lock:
            highest[0] += 1
            highest[1] = max(highest[1], highest[0])
        time.sleep(0.002)
        with lock:
            highest[0] -= 1
        store.settle(checks, None, 0.0)
    highest[2] += admitted


@pytest.mark.parametrize("amount", [1, 2])
def test_never_more_together_than_the_limit(tmp_path, amount):
    """Three workers, a limit of one or two: each is admitted, and never too many at once."""
    context = multiprocessing.get_context("spawn")
    highest, lock = context.Array("i", 3), context.Lock()
    together = context.Barrier(WORKERS)
    arguments = (tmp_path / "slots.lock", amount, highest, lock, together, 40)
    workers = [context.Process(target=_work, args=arguments) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert 1 <= highest[1] <= amount
    assert highest[2] > 40  # more than one worker got in


def _hold(path, ready) -> None:
    store = LocalStore(1 / WORKERS, SharedSlots(path))
    assert store.admit(checks_of([limit_of("key", "concurrency", 1)], SUBJECT), 0.0).admitted
    ready.set()
    time.sleep(60)


def test_what_a_killed_worker_held_comes_back(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    worker = context.Process(target=_hold, args=(tmp_path / "p", ready))
    worker.start()
    assert ready.wait(30)
    store = LocalStore(1 / WORKERS, SharedSlots(tmp_path / "p"))
    checks = checks_of([limit_of("key", "concurrency", 1)], SUBJECT)
    assert not store.admit(checks, 0.0).admitted
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(60)
    assert store.admit(checks, 0.0).admitted
    assert not store.admit(checks, 0.0).admitted


def test_one_process_may_use_all_of_it(tmp_path):
    """A share per worker would refuse callers who all reach one worker."""
    store = LocalStore(1 / WORKERS, SharedSlots(tmp_path / "p"))
    checks = checks_of([limit_of("key", "concurrency", 5)], SUBJECT)
    assert [store.admit(checks, 0.0).admitted for _ in range(6)] == [True] * 5 + [False]
    store.settle(checks, None, 0.0)
    assert store.admit(checks, 0.0).admitted


def test_a_refused_request_leaves_no_slot_taken(tmp_path):
    store = LocalStore(1 / WORKERS, SharedSlots(tmp_path / "p"))
    one, many = limit_of("key", "concurrency", 1), limit_of("tenant", "concurrency", 5)
    both = checks_of([many, one], SUBJECT)
    assert store.admit(both, 0.0).admitted
    assert not store.admit(both, 0.0).admitted
    others = checks_of([many], SUBJECT)
    assert [store.admit(others, 0.0).admitted for _ in range(5)] == [True] * 4 + [False]


def test_a_limit_above_the_slots_is_shared_out_and_never_exceeded(tmp_path):
    checks = checks_of([limit_of("key", "concurrency", 100)], SUBJECT)
    stores = [LocalStore(1 / WORKERS, None) for _ in range(WORKERS)]
    admitted = sum(store.admit(checks, 0.0).admitted for store in stores for _ in range(100))
    assert admitted == 99


def test_a_tenant_with_a_million_callers_fills_no_memory(monkeypatch):
    """Beyond a number its callers share one bucket; another tenant's are as they were."""
    monkeypatch.setattr(local, "MAX_BUCKETS", 100)
    store = LocalStore()
    limit = limit_of("key", "requests", 5, 3600)
    for number in range(1000):
        store.admit(checks_of([limit], Subject("acme", f"jwt:corp:{number}", "chat")), 0.0)
    assert len(store) == 101
    late = Subject("acme", "jwt:corp:late", "chat")
    assert not store.admit(checks_of([limit], late), 0.0).admitted
    other = checks_of([limit], Subject("other", "k", "chat"))
    assert [store.admit(other, 0.0).admitted for _ in range(6)] == [True] * 5 + [False]
    store.sweep(1e6)
    assert len(store) == 0
    assert store.admit(checks_of([limit], late), 1e6).admitted
