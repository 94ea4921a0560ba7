"""Starts the engine's process, asks it, and starts it again when it ends, hangs or is stopped.

What is under way then fails at once, and what is asked meanwhile is refused with "try again".
"""

import contextlib
import json
import queue
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from lm_jobs import (
    Busy,
    Cancelled,
    EngineDied,
    Load,
    Question,
    SentPiece,
    failure_of,
    line,
    question_line,
)

LOOK_S = 0.02  # between two looks whether a client has left: each is a round trip to the server
CHECK_S = 1.0  # between two looks whether the process is stopped or hangs
STOPPED_S = 5.0  # a process that was stopped (SIGSTOP) for this long does not resume by itself
START_S = 600.0  # for a model to load
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
WELL_S = 60.0  # an engine that served this long is started again without a pause
END_S = 10.0  # for what is under way to be told, when the model is unloaded


class EngineFailed(Exception):
    """The engine cannot be started; the text says why."""


class Asker(Protocol):
    """Who asked. All are called from one thread; one of ``fail`` and a last ``send`` ends it."""

    question: Question

    def send(self, prompt_tokens: int, pieces: list[SentPiece], is_last: bool) -> None: ...
    def fail(self, error: Exception) -> None: ...
    def is_cancelled(self) -> bool: ...


class _Engine:
    """One process. A thread writes to it, so that nobody else waits for a process that is stopped;
    only the supervisor's thread reads."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.heard = time.monotonic()
        self.ready_since: float | None = None
        self.stopped_since: float | None = None
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self._write, name="to-engine", daemon=True).start()

    @property
    def is_ready(self) -> bool:
        return self.ready_since is not None

    def served_s(self) -> float:
        """How long it has taken requests; 0 while it loads, which may take minutes."""
        return 0.0 if self.ready_since is None else time.monotonic() - self.ready_since

    def tell(self, data: bytes | None) -> None:
        """None ends its input, and so the process, once it has said what is left to say."""
        self._outbox.put(data)

    def _write(self) -> None:
        assert self.process.stdin  # noqa: S101 - a pipe
        with contextlib.suppress(OSError):  # it has ended, which who reads finds out
            while (data := self._outbox.get()) is not None:
                rest = memoryview(data)
                while rest:
                    rest = rest[self.process.stdin.write(rest) :]
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def fault(self, max_step_s: float) -> str:
        """Why it must be ended; '' if it need not be."""
        now = time.monotonic()
        self.stopped_since = (self.stopped_since or now) if self._is_stopped() else None
        if self.stopped_since and now - self.stopped_since >= STOPPED_S:
            return f"it has been stopped for {now - self.stopped_since:.0f} s"
        silent_s = now - self.heard
        if silent_s >= (max_step_s if self.is_ready else START_S):
            return f"it has not taken a step for {silent_s:.0f} s"
        return ""

    def _is_stopped(self) -> bool:
        try:
            status = Path(f"/proc/{self.process.pid}/stat").read_text()
        except OSError:
            return False
        return status.rpartition(")")[2].split()[0] in "Tt"

    def why_ended(self) -> str:
        """Waits for its end."""
        code = self.process.wait()
        if code >= 0:
            return f"exit code {code}"
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
        return f"killed by signal {-code}"


class Supervisor(threading.Thread):
    """``start`` it, then ``wait_ready``; ``submit`` from any thread."""

    def __init__(
        self,
        command: Sequence[str],
        most: int,
        max_step_s: float,
        report: Callable[[Load, int], None] = lambda load, restarts: None,
        log: Callable[[str], None] = lambda text: None,
    ) -> None:
        """``command`` runs lm_engine; ``most`` requests may be under way; ``report`` gets the load
        and how often the engine was started again."""
        super().__init__(name="supervisor", daemon=True)
        self._command, self._most, self._max_step_s = command, most, max_step_s
        self._report, self._log = report, log
        self._lock = threading.Lock()
        self._engine: _Engine | None = None  # while it takes requests
        self._asked: dict[int, Asker] = {}
        self._cancelled: set[int] = set()
        self._numbers = 0
        self._restarts = 0
        self._next_place_s = 0.0
        self._ready, self._stopping = threading.Event(), threading.Event()
        self._error = ""
        self._looked = self._checked = 0.0

    def wait_ready(self) -> None:
        """Returns when the model is loaded for the first time. Raises EngineFailed."""
        self._ready.wait()
        if self._error:
            raise EngineFailed(self._error)

    def submit(self, asker: Asker) -> None:
        """Raises Busy; everything later comes through ``asker.fail``."""
        with self._lock:
            if self._engine is None:
                raise Busy("the engine has ended and is being started again")
            if len(self._asked) >= self._most:
                raise Busy(f"{len(self._asked)} requests are under way", self._next_place_s)
            self._numbers += 1
            self._asked[self._numbers] = asker
            self._engine.tell(question_line(self._numbers, asker.question))

    def stop(self) -> None:
        """End everything under way as cancelled, the process and the thread."""
        self._stopping.set()
        self.join()

    def run(self) -> None:
        pause_s = 0.0
        while not self._stopping.wait(pause_s):
            why, served_s = self._run_once()
            if not self._ready.is_set():  # it never loaded
                self._error = why
                self._ready.set()
                return
            if self._stopping.is_set():
                return
            is_well = served_s >= WELL_S
            pause_s = 0.0 if is_well else min(max(2 * pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S)
            self._restarts += 1
            self._report(Load(), self._restarts)
            self._log(f"the engine has ended ({why}); it is started again in {pause_s:g} s")

    def _run_once(self) -> tuple[str, float]:
        """Start an engine and serve until it ends; returns why, and for how many seconds it
        served."""
        try:
            engine = _Engine(self._command)
        except OSError as error:
            return f"no process to run in: {error}", 0.0
        try:
            why = self._serve(engine)
        finally:
            served_s = engine.served_s()
            with self._lock:
                self._engine = None
                left, self._asked = list(self._asked.values()), {}
                self._cancelled.clear()
            engine.process.kill()
            engine.tell(None)
            if engine.process.stdout:
                engine.process.stdout.close()
            ended = engine.why_ended()
            for asker in left:
                asker.fail(self._ending())
        return why or ended, served_s

    def _ending(self) -> Exception:
        """Why what is under way ends with its engine."""
        if self._stopping.is_set():
            return Cancelled("the model is being unloaded")
        return EngineDied("the engine failed")

    def _serve(self, engine: _Engine) -> str:
        """Read what the engine says until it ends; returns why if that is known."""
        assert engine.process.stdout  # noqa: S101 - a pipe
        rest, stop_by = b"", float("inf")
        with selectors.DefaultSelector() as selector:
            selector.register(engine.process.stdout, selectors.EVENT_READ)
            while True:
                if selector.select(LOOK_S if self._asked else CHECK_S):
                    data = engine.process.stdout.read(65536)
                    if not data:
                        return ""
                    engine.heard = time.monotonic()
                    *lines, rest = (rest + data).split(b"\n")
                    for one in lines:
                        if why := self._hear(engine, json.loads(one)):
                            return why
                elif fault := self._fault(engine):
                    return fault
                self._look_for_cancelled(engine)
                if self._stopping.is_set():
                    engine.tell(None)
                    stop_by = min(stop_by, time.monotonic() + END_S * engine.is_ready)
                    if time.monotonic() >= stop_by:
                        return "the model is being unloaded"

    def _hear(self, engine: _Engine, message: list[Any]) -> str:
        """Returns why the engine cannot serve, if it says so."""
        kind, *values = message
        if kind == "refused":
            return str(values[0])
        if kind == "ready":
            engine.ready_since = time.monotonic()
            with self._lock:
                self._engine = engine
            self._ready.set()
        elif kind == "load":
            load = Load(*values)
            self._next_place_s = load.next_place_s
            self._report(load, self._restarts)
        else:
            self._answer(kind, *values)
        return ""

    def _answer(self, kind: str, number: int, *values: Any) -> None:
        asker = self._asked[number]
        is_last = kind == "fail" or values[-1]
        if is_last:
            with self._lock:
                del self._asked[number]
            self._cancelled.discard(number)
        if kind == "fail":
            asker.fail(failure_of(*values))
        else:
            prompt_tokens, pieces, _ = values
            asker.send(prompt_tokens, [SentPiece(*piece) for piece in pieces], is_last)

    def _fault(self, engine: _Engine) -> str:
        now = time.monotonic()
        if now - self._checked < CHECK_S:
            return ""
        self._checked = now
        return engine.fault(self._max_step_s)

    def _look_for_cancelled(self, engine: _Engine) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        with self._lock:
            asked = list(self._asked.items())
        for number, asker in asked:
            if number not in self._cancelled and asker.is_cancelled():
                self._cancelled.add(number)
                engine.tell(line("cancel", number))
