"""Servers in virtual time, whose capacity and faults are known exactly: a queue in front of some
slots, each of which works on one request at a time."""

import heapq
from dataclasses import dataclass, field

import numpy as np

from loadtests.signoff.arrivals import POISSON, Arrivals, Times
from loadtests.signoff.memory import Memory
from loadtests.signoff.samples import Samples
from loadtests.signoff.steps import Steps


@dataclass
class Server:
    """Carries ``slots / service_s`` requests a second. ``growth`` is its service time's share more
    for each request that waits (a knee that comes slowly), ``stall_s`` a pause in each
    ``stall_every_s``, ``lag_s`` how late the load generator is."""

    slots: int = 1
    service_s: float = 0.01
    spread: float = 0.1
    errors: float = 0.0
    tail: float = 0.0
    growth: float = 0.0
    stall_s: float = 0.0
    stall_every_s: float = 10.0
    lag_s: float = 0.0
    leak_mib_per_min: float = 0.0
    ends_in: str = ""  # the phase in which it ends, and nobody takes its place
    arrivals: Arrivals = POISSON
    phases: list[tuple[str, float]] = field(default_factory=list)
    memory: Memory = field(default_factory=lambda: Memory(None))
    steps: Steps = field(default_factory=lambda: Steps(lambda: None))
    _seed: int = 0

    def load(
        self,
        rate: float,
        seconds: float,
        phase: str,
        then: tuple[float, float] | None = None,
        due: Times | None = None,
    ) -> Samples:
        self.phases.append((phase, rate))
        self._seed += 1
        generator = np.random.default_rng(self._seed)
        if due is None:
            due, seconds = self.arrivals.schedule(rate, seconds, then, self._seed)
        service = self.service_s * generator.lognormal(0, self.spread, len(due))
        service[generator.random(len(due)) < self.tail] += 0.5
        free = [0.0] * self.slots  # when each slot is done
        done = []
        for at, takes_s in zip(due.tolist(), service.tolist(), strict=True):
            begin = max(at, free[0])
            if self.stall_s and begin % self.stall_every_s < self.stall_s:
                begin += self.stall_s - begin % self.stall_every_s
            if self.growth:
                waiting = sum(max(until - at, 0.0) for until in free) / self.service_s
                takes_s *= 1 + self.growth * waiting
            heapq.heapreplace(free, begin + takes_s)
            done.append(begin + takes_s)
        latency = np.array(done) - due
        for _ in range(int(seconds)):
            now = (self.memory.readings[-1][0] if self.memory.readings else 0) + 1
            mib = 500 + self.leak_mib_per_min * now / 60 + generator.normal(0, 0.05)
            self.memory.readings.append((now, mib))
        lag = np.full(len(due), self.lag_s)
        faults = np.where(generator.random(len(due)) < self.errors, "HTTP 500", "")
        if self.ends_in and self.ends_in in {done for done, _ in self.phases}:
            faults = np.full(len(due), "ConnectionRefusedError")
        nothing = np.full(len(due), np.nan)
        parts = dict.fromkeys(("first_token", "gap", "gateway", "upstream"), nothing)
        return Samples(rate, seconds, due, latency + lag, lag, faults, parts)
