"""Whether a model that does not answer in time is working: load is not death.

A model works if its counts move (Triton's ModelStatistics), or if its processes use the CPU.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

from serving.errors import ServingError
from serving.health.progress import BUSY_S, BUSY_SHARE, HUNG_S
from serving.triton.control import TritonControl
from serving.triton.stubs import Stub

STOPPED_S = 15.0  # this long a process is stopped (SIGSTOP), and nothing moves


@dataclass
class _Seen:
    """A model's counts, since when they have been unchanged, and its processes' CPU seconds when it
    was last seen to use the CPU."""

    counts: tuple[int, ...]
    since: float
    cpu_s: float
    worked: float
    is_hung: bool = False


class Work:
    """What the late models of one Triton have done since they were first late."""

    def __init__(self, control: TritonControl, hung_s: float = HUNG_S) -> None:
        """``hung_s``: for how many seconds nothing may move."""
        self._control, self._hung_s = control, hung_s
        self._seen: dict[str, _Seen] = {}

    def forget(self, model: str) -> None:
        self._seen.pop(model, None)

    def is_hung(self, model: str) -> bool:
        return model in self._seen and self._seen[model].is_hung

    def idle_s(self, model: str, stubs: Iterable[Stub]) -> float:
        """For how many seconds the model has done nothing, once that is too long; 0 while it may be
        busy.

        Call this whenever the model is late.
        """
        names, now = self.parts(model), time.monotonic()
        processes = _processes(stub for stub in stubs if stub.model in names)
        counts, cpu_s = self.counts(names), _cpu_s(processes)
        seen = self._seen.get(model)
        if seen is None or seen.counts != counts:
            self._seen[model] = _Seen(counts, now, cpu_s, now)
            return 0.0
        if cpu_s - seen.cpu_s > BUSY_SHARE * (now - seen.worked):
            seen.worked = now
        seen.cpu_s = cpu_s if seen.worked == now else seen.cpu_s
        bound_s = STOPPED_S if _is_any_stopped(processes) else self._hung_s
        is_looping = now - seen.since >= max(BUSY_S, self._hung_s)
        seen.is_hung = now - seen.worked >= bound_s or is_looping
        return now - seen.since if seen.is_hung else 0.0

    def parts(self, model: str) -> set[str]:
        """The model and, for an ensemble, its steps."""
        try:
            steps = self._control.config(model).ensemble_scheduling.step
        except ServingError:
            steps = []
        return {model, *(step.model_name for step in steps)}

    def counts(self, names: set[str]) -> tuple[int, ...]:
        """Counts that grow with each request that ends, even in an error, but not with those that
        the client gave up, as the probe itself does."""
        counts: list[int] = []
        for name in sorted(names):
            try:
                for version in self._control.statistics(name):
                    stats = version.inference_stats
                    counts += [version.execution_count, stats.success.count, stats.fail.count]
            except ServingError:
                continue
        return tuple(counts)


def _processes(stubs: Iterable[Stub]) -> list[psutil.Process]:
    processes = []
    for stub in stubs:
        try:
            processes.append(psutil.Process(stub.pid))
        except psutil.Error:
            continue
    return processes


def _cpu_s(processes: Iterable[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def _is_any_stopped(processes: Iterable[psutil.Process]) -> bool:
    try:
        return any(process.status() == psutil.STATUS_STOPPED for process in processes)
    except psutil.Error:
        return False
