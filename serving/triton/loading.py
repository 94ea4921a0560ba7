"""While Triton loads a model: what it waits for, whether the load can still end, and why it failed.

Triton 2.51 never answers a load whose Python process ended before it had connected (no model.py, a
crash at import): the process table shows that. Only its log says why a config was refused.
"""

import contextlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import psutil

from serving.errors import ModelLoadFailed, ServingError, StubCrashed
from serving.repository.model_repository import ModelRepository
from serving.triton.stubs import live_stubs, stub_of

REPORT_EVERY_S = 10.0
# If Triton has not noticed for this long that a process of a model has ended, it never will.
UNNOTICED_S = 4.0
# A process's connections close a moment before it has ended.
DIED_S = 0.5
# What a Python process of Triton 2.51 dies of if it opens the shared memory before the server has
# set it up, on a machine without idle cores (triton-inference-server/tensorrtllm_backend#521 looks
# like it). The server waits for it for ever.
RACE = "boost::interprocess::lock_exception"
TAIL_BYTES = 1024 * 1024
_LINE = re.compile(r'[IWEF]\d{4} [\d:.]+ +\d+ \S+\] +"?(.*?)"?\s*')
_REASONS = re.compile(
    r"Poll failed for model directory|Failed to preinitialize|Failed to initialize"
    r"|failed to load '[^']+' version|^(bash|sh): |error while loading shared libraries|what\(\):"
    r"|terminate called|^Signal \("
)


class Loading:
    """One load of a model from ``repository``. The server with process id ``pid`` logs to
    ``log_file``; ``report`` takes lines for the operator."""

    def __init__(
        self,
        model: str,
        repository: ModelRepository,
        log_file: Path,
        pid: int,
        report: Callable[[str], None],
    ) -> None:
        self._model, self._repository = model, repository
        self._log_file, self._report = log_file, report
        self._log_offset = log_file.stat().st_size if log_file.is_file() else 0
        self._server = psutil.Process(pid)
        self._began = time.monotonic()
        self._reported_at = self._began
        self._children_before = {child.pid for child in self._children()}
        self._stubs_before = live_stubs(pid)
        self._ended_since: dict[int, float] = {}  # by pid, monotonic seconds
        self._names = _with_steps(repository, model)
        self._others: set[int] = set()  # processes of models that are loaded concurrently

    def look(self) -> None:
        """Call this often; ModelLoadFailed if the load will never end in this server, StubCrashed
        if it would in a new one."""
        now = time.monotonic()
        children = self._children()
        stubs = (stub_of(child) for child in children if child.pid not in self._children_before)
        self._others |= {stub.pid for stub in stubs if stub and stub.model not in self._names}
        # Only those that this load has started: others may have been stopped on purpose.
        ended = {child.pid for child in children if _is_zombie(child)}
        ended -= self._children_before | self._others
        self._ended_since = {pid: self._ended_since.get(pid, now) for pid in ended}
        if any(now - since > UNNOTICED_S for since in self._ended_since.values()):
            raced = any(RACE in line for line in self._lines())
            raise (StubCrashed if raced else ModelLoadFailed)(
                self._model,
                self.explained("one of its processes ended before it was ready, and Triton waits"),
            )
        if now - self._reported_at >= REPORT_EVERY_S:
            self._reported_at = now
            self._report(f"  still loading {self._model} ({now - self._began:.0f} s)")

    def give_up(self, bound_s: float) -> NoReturn:
        """End the processes that this load has started, so that Triton gives it up; raises
        ModelLoadFailed."""
        before = self._stubs_before
        for stub in live_stubs(self._server.pid) - before:
            if stub.model in self._names:
                stub.end()
        raise ModelLoadFailed(
            self._model,
            self.explained(
                f"it was not reloaded within {bound_s:.0f} s, far longer than ever before: the "
                "processes it had started were ended, and the next attempt gets longer"
            ),
        )

    def explained(self, reason: str) -> str:
        """``reason`` with what Triton's log says about it, and the path of that log."""
        if self._has_died():
            reason = f"Triton itself ended while it loaded the model ({reason})"
            if warming := self._with_warmup():
                reason += (
                    f"; {' and '.join(warming)} has a model_warmup in its config, and a warm-up "
                    "request that is answered with an error crashes Triton 2.51"
                )
        reasons = [line for line in self._lines() if _REASONS.search(line)]
        poll_failures = [line for line in reasons if line.startswith("Poll failed")]
        logged = (poll_failures or reasons or [""])[-1]
        is_known = not logged or (logged.partition(": ")[2] or logged)[:60] in reason
        return f"{reason}{'' if is_known else f': {logged}'} (log: {self._log_file})"

    def _lines(self) -> list[str]:
        """What was logged since the load began, without timestamps and source positions."""
        try:
            with self._log_file.open("rb") as file:
                size = file.seek(0, 2)
                # A log that was rotated meanwhile is shorter, and all of it is new.
                file.seek(
                    max(self._log_offset if self._log_offset <= size else 0, size - TAIL_BYTES)
                )
                text = file.read().decode(errors="replace")
        except OSError:
            return []
        lines = (_LINE.fullmatch(line) for line in text.splitlines())
        plain = text.splitlines()
        return [
            " ".join((match[1] if match else line).replace("\\n", " ").split())[:600]
            for match, line in zip(lines, plain, strict=True)
        ]

    def _with_warmup(self) -> list[str]:
        """Those of the model and its members that have a warm-up."""
        try:
            return [name for name in self._names if self._repository.config(name).model_warmup]
        except (ServingError, OSError):
            return []

    def _has_died(self) -> bool:
        deadline = time.monotonic() + DIED_S
        while time.monotonic() < deadline:
            if not self._server.is_running() or _is_zombie(self._server):
                return True
            time.sleep(0.05)
        return False

    def _children(self) -> list[psutil.Process]:
        """The server's processes, with those that have ended but were not reaped yet."""
        try:
            return list(self._server.children())
        except psutil.Error:
            return []


def _with_steps(repository: ModelRepository, model: str) -> list[str]:
    """The model and, for an ensemble, all its steps, as far as the configs can be read."""
    names: list[str] = []
    waiting = [model]
    while waiting:
        name = waiting.pop(0)
        if name in names:
            continue
        names.append(name)
        with contextlib.suppress(ServingError, OSError, ValueError):
            config = repository.config(name)
            waiting += [step.model_name for step in config.ensemble_scheduling.step]
    return names


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
