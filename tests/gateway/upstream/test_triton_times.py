"""What Triton's statistics say of the time since they were last read."""

import asyncio

import pytest
from tritonclient.grpc import service_pb2

from gateway.errors import NoCapacity
from gateway.upstream import triton_times
from gateway.upstream.triton_times import STALE_S, TritonTimes, for_each_request


class _Replica:
    """A replica whose statistics a test sets: requests, and seconds of queue and compute in all."""

    def __init__(self, address):
        self.address, self.upstream = address, self
        self.asked, self.hangs = 0, False
        self.totals = {"step": (0, 0.0, 0.0)}

    async def describe(self, method, model):
        assert method == "ModelStatistics"
        self.asked += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.totals is None:
            raise NoCapacity("it is gone")
        requests, queue_s, compute_s = self.totals[model]
        response = service_pb2.ModelStatisticsResponse()
        statistics = response.model_stats.add(name=model, version="1").inference_stats
        statistics.queue.count, statistics.queue.ns = requests, int(queue_s * 1e9)
        statistics.compute_infer.ns = int(compute_s * 1e9)
        return response


async def test_pipelines_that_share_a_step_are_told_the_same():
    replica, times = _Replica("a:1"), TritonTimes()
    wanted = [(replica, "step"), (replica, "step")]  # of two pipelines
    assert await times.read(wanted, 0.0) == {}  # nothing to compare with
    replica.totals["step"] = (10, 2.0, 0.2)
    deltas = await times.read(wanted, 0.5)
    assert replica.asked == 2
    assert for_each_request(deltas, [replica], ["step"]) == pytest.approx((0.2, 0.02))


async def test_replicas_are_averaged_and_steps_added():
    one, other, times = _Replica("a:1"), _Replica("b:1"), TritonTimes()
    one.totals = other.totals = {"pre": (0, 0.0, 0.0), "post": (0, 0.0, 0.0)}
    wanted = [(replica, step) for replica in (one, other) for step in ("pre", "post")]
    await times.read(wanted, 0.0)
    one.totals = {"pre": (10, 1.0, 1.0), "post": (10, 0.0, 2.0)}
    other.totals = {"pre": (30, 1.0, 3.0), "post": (30, 0.0, 6.0)}
    deltas = await times.read(wanted, 0.5)
    seconds = for_each_request(deltas, [one, other], ["pre", "post"])
    assert seconds == pytest.approx((0.05, 0.3))
    assert for_each_request(deltas, [], ["pre"]) == (0.0, 0.0)


async def test_a_restart_a_long_pause_and_silence_say_nothing():
    replica, times = _Replica("a:1"), TritonTimes()
    replica.totals["step"] = (100, 1.0, 1.0)
    await times.read([(replica, "step")], 0.0)
    replica.totals["step"] = (20, 0.1, 0.1)  # it was started again
    assert await times.read([(replica, "step")], 0.5) == {}
    replica.totals["step"] = (5000, 80.0, 9.0)
    assert await times.read([(replica, "step")], 0.5 + STALE_S) == {}
    replica.totals = None
    assert await times.read([(replica, "step")], STALE_S + 1) == {}


async def test_one_that_hangs_delays_no_others(monkeypatch):
    """Its share of the requests goes to them now: their limits have to follow."""
    monkeypatch.setattr(triton_times, "LATE_S", 0.05)
    one, other, times = _Replica("a:1"), _Replica("b:1"), TritonTimes()
    wanted = [(replica, "step") for replica in (one, other)]
    await times.read(wanted, 0.0)
    one.hangs = True
    other.totals["step"] = (10, 2.0, 0.2)
    async with asyncio.timeout(20):
        deltas = await times.read(wanted, 0.5)
    assert for_each_request(deltas, [one, other], ["step"]) == pytest.approx((0.2, 0.02))
