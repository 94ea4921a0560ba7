"""Pipelines that are missing, made by processes of their own, two at a time: most of what makes one
runs on a single core."""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import IO

from serving.errors import ServingError

AT_ONCE = 2
POLL_S = 0.1
RELAY_S = 5.0  # for the last lines of a process that has ended


@dataclass(frozen=True)
class Job:
    """``command`` are the arguments of ``tidegate`` that make the pipeline ``name``, once those in
    ``after`` are made that are missing too. ``doing`` is what that is called, with the name."""

    name: str
    doing: str
    command: Sequence[str]
    after: Collection[str] = ()


Process = subprocess.Popen[bytes]
Report = Callable[[str], None]


@dataclass(frozen=True)
class _Run:
    job: Job
    process: Process
    relay: threading.Thread | None


class Making:
    """Call ``run``; ``processes`` are those that run, also after it was interrupted or failed."""

    def __init__(
        self,
        begin: Callable[[Job, IO[bytes] | None], Process],
        look: Callable[[Sequence[Job]], None],
        report: Report,
    ) -> None:
        """``begin`` starts a job's process, which writes to the stream if there is one; ``look`` is
        called with the jobs that run, again and again; and ``report`` with what they write."""
        self._begin, self._look, self._report = begin, look, report
        self._running: list[_Run] = []

    @property
    def processes(self) -> list[Process]:
        return [run.process for run in self._running]

    def run(self, jobs: Sequence[Job]) -> None:
        """Make all, in this order as far as none waits for another. ServingError as soon as one
        could not be made; ending the others is left to the caller."""
        at_once = min(AT_ONCE, os.cpu_count() or 1, len(jobs))
        waiting = list(jobs)
        while waiting or self._running:
            missing = {job.name for job in (*waiting, *(run.job for run in self._running))}
            for job in [job for job in waiting if missing.isdisjoint(job.after)]:
                if len(self._running) < at_once:
                    waiting.remove(job)
                    self._running.append(self._start(job, relayed=at_once > 1))
            self._look([run.job for run in self._running])
            time.sleep(POLL_S)
            for run in [run for run in self._running if run.process.poll() is not None]:
                if run.relay:
                    run.relay.join()
                if run.process.returncode:
                    raise ServingError(
                        f"{run.job.name} was not made (see above); nothing was started"
                    )
                self._running.remove(run)

    def _start(self, job: Job, *, relayed: bool) -> _Run:
        if not relayed:
            return _Run(job, self._begin(job, None), None)
        # What two processes write to a terminal would mix, and each would draw its progress there.
        lines, stream = os.pipe()
        relay = threading.Thread(target=self._relay, args=(lines,), name="relay", daemon=True)
        relay.start()
        return _Run(job, self._begin(job, os.fdopen(stream, "wb")), relay)

    def _relay(self, lines: int) -> None:
        with os.fdopen(lines, encoding="utf-8", errors="replace") as stream:
            for line in stream:
                self._report(line.rstrip("\n"))
