"""Background tasks: whatever ends one, it is noticed, restarted and counted."""

import asyncio
import collections

import pytest

from gateway import supervision
from gateway.supervision import Supervisor, every
from tests.gateway.eventually import until


@pytest.fixture
async def watched(monkeypatch):
    """A supervisor that checks often, and its count of restarts per task."""
    monkeypatch.setattr(supervision, "CHECK_S", 0.02)
    monkeypatch.setattr(supervision, "BACKOFF_S", (0.03,))
    restarts = collections.Counter()
    supervisor = Supervisor(lambda name: restarts.update([name]))
    supervisor.open()
    yield supervisor, restarts
    await supervisor.close()


class Stop(BaseException):
    pass


@pytest.mark.parametrize(
    "error", [None, RuntimeError("bug"), Stop(), asyncio.CancelledError(), SystemExit(3)]
)
async def test_a_task_that_ends_is_noticed_and_restarted(watched, error):
    supervisor, restarts = watched
    rounds = []

    async def work():
        rounds.append(1)
        if len(rounds) > 2:
            await asyncio.Future()
        if error:
            raise error

    supervisor.run("loop", work)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert "loop" in supervisor.faults()  # until it runs again
    await until(lambda: len(rounds) == 3)
    await until(lambda: supervisor.faults() == {})
    assert restarts == {"loop": 2}


async def test_a_task_that_cancels_itself_is_no_exception(watched):
    supervisor, restarts = watched
    rounds = []

    async def work():
        rounds.append(1)
        if len(rounds) < 2:
            asyncio.current_task().cancel()
        await asyncio.sleep(100)

    supervisor.run("loop", work)
    await until(lambda: restarts["loop"] == 1)
    await asyncio.sleep(0.1)
    assert len(rounds) == 2


async def test_a_task_that_stalls_is_cancelled_and_restarted(watched):
    supervisor, restarts = watched
    rounds = []

    async def work():
        rounds.append(1)
        if len(rounds) == 1:
            await asyncio.Future()

    def loop():
        return every(0.01, work, lambda: task.heartbeat(), lambda why: task.failed(why))

    task = supervisor.run("loop", loop, stall_s=1.0)
    await asyncio.sleep(0.1)
    assert supervisor.faults() == {}
    await until(lambda: restarts["loop"] == 1)
    await until(lambda: len(rounds) > 5)
    assert supervisor.faults() == {}


async def test_one_that_fails_every_round_is_reported_and_logged_once(watched, caplog):
    supervisor, restarts = watched
    fails = True

    async def work():
        if fails:
            raise ValueError("no file")

    def loop():
        return every(0.01, work, lambda: task.heartbeat(), lambda why: task.failed(why))

    task = supervisor.run("loop", loop, stall_s=5)
    await until(lambda: supervisor.faults() == {"loop": "fails: ValueError: no file"})
    await asyncio.sleep(0.2)
    assert caplog.text.count("background work failed") == 1
    fails = False
    await until(lambda: supervisor.faults() == {})
    assert restarts == {}  # it was neither cancelled nor restarted


async def test_one_that_ends_at_once_is_not_restarted_in_a_frenzy(watched, monkeypatch):
    monkeypatch.setattr(supervision, "BACKOFF_S", (0.05, 10))
    supervisor, restarts = watched

    async def work():
        raise RuntimeError

    supervisor.run("loop", work)
    await until(lambda: restarts["loop"] == 1)
    await asyncio.sleep(0.3)
    assert restarts["loop"] == 1
    assert supervisor.faults() == {"loop": "has ended (RuntimeError)"}


async def test_something_else_is_watched_too(watched):
    """As the audit log's thread is; an error while reviving it ends nothing."""
    supervisor, restarts = watched

    class Thread:
        revivals = 0

        def fault(self):
            return "" if self.revivals > 2 else "its thread has ended"

        def revive(self):
            self.revivals += 1
            if self.revivals == 1:
                raise RuntimeError
            return True

    supervisor.watch("audit", Thread())
    assert supervisor.faults() == {"audit": "its thread has ended"}
    await until(lambda: supervisor.faults() == {})
    assert restarts == {"audit": 2}


async def test_closing_ends_every_task(watched):
    supervisor, restarts = watched
    ended = []

    async def work():
        try:
            await asyncio.Future()
        finally:
            ended.append(1)

    supervisor.run("one", work)
    supervisor.run("two", work)
    await asyncio.sleep(0)
    await supervisor.close()
    assert len(ended) == 2
    assert restarts == {}
    assert supervisor.faults() == {}
