"""Several load generators, each a process with a core of its own, that share one schedule.

Each sends every so manieth request of it, at the time at which one alone would have sent it:
processes of one machine have one clock. So what arrives has the same distribution, and what they
measured is put together again as if one had sent it all.
"""

import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import gevent

from loadtests.preflight import CannotStart
from loadtests.signoff.arrivals import Times
from loadtests.signoff.preflight import Pipeline
from loadtests.signoff.requests import Target
from loadtests.signoff.samples import Samples, merged
from loadtests.signoff.trace import Trace

REPLAY = ""  # stands for the trace among the names of pipelines
LEAD_S = 0.5  # from the order to the first request: all have read it by then
APART = 97  # texts from where one generator begins to where the next does


class GeneratorLost(RuntimeError):
    """A load generator ended early: what it measured is gone."""


@dataclass(frozen=True)
class Setup:
    """What a generator sends: of each pipeline, and of its part of the trace."""

    target: Target
    served: Mapping[str, Pipeline]
    apis: Mapping[str, Mapping[str, float]]
    trace: Trace | None

    def part(self, index: int, count: int) -> "Setup":
        """Of one of ``count`` generators."""
        trace = self.trace
        if trace:
            trace = replace(trace, requests=trace.requests[index::count])
        return replace(self, target=replace(self.target, first_text=index * APART), trace=trace)


@dataclass(frozen=True)
class Order:
    """``name`` is a pipeline, or REPLAY; ``began`` is when 0 is, on the machine's clock."""

    name: str
    due: Times
    rate: float
    duration_s: float
    began: float


class Generators:
    """The processes. What one refuses as it starts is raised as CannotStart."""

    def __init__(self, processes: Sequence["subprocess.Popen[bytes]"]) -> None:
        self._processes = processes

    def run(
        self,
        name: str,
        due: Times,
        rate: float,
        duration_s: float,
        progress: Callable[[float], None] = lambda elapsed_s: None,
    ) -> Samples:
        """As ``open_loop.run``, by all of them. Raises GeneratorLost."""
        began, count = time.perf_counter() + LEAD_S, len(self._processes)
        for index, process in enumerate(self._processes):
            order = Order(name, due[index::count], rate / count, duration_s, began)
            _send(process.stdin, order)
        waiting = [gevent.spawn(_receive, process.stdout) for process in self._processes]
        try:
            while len(gevent.joinall(waiting, timeout=1.0)) < count:
                progress(max(0.0, time.perf_counter() - began))
        finally:
            gevent.killall(waiting)
        parts: list[Samples] = []
        for reader in waiting:
            received = reader.value
            if not isinstance(received, Samples):
                raise GeneratorLost("a load generator ended early")
            parts.append(received)
        return merged(parts, rate)


@contextmanager
def generators(setup: Setup, count: int) -> Iterator[Generators]:
    """So many processes, ended on exit."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for index in range(count):
            process = subprocess.Popen(
                [sys.executable, "-m", "loadtests.signoff.generator"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the one that writes the report
            )
            processes.append(process)
            _send(process.stdin, setup.part(index, count))
        for process in processes:
            refusal = receive(process.stdout)
            if refusal:
                raise CannotStart(str(refusal))
        yield Generators(processes)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def _receive(file: Any) -> Any:
    """As ``receive``, for a greenlet: what it raised would be printed."""
    try:
        return receive(file)
    except GeneratorLost:
        return None


def _send(file: Any, message: object) -> None:
    try:
        pickle.dump(message, file)
        file.flush()
    except OSError:
        raise GeneratorLost("a load generator ended early") from None


def receive(file: Any) -> Any:
    """The next message; GeneratorLost if the other process has ended."""
    try:
        return pickle.load(file)  # noqa: S301 - of our own process
    except (EOFError, OSError, pickle.UnpicklingError):
        raise GeneratorLost("a load generator ended early") from None
