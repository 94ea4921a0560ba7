"""Lets no structure into the engine that it cannot compile: see lm_compiler.

One thread compiles for all requests, in a child process and then here, while the engine goes on. It
remembers what it has compiled, so only the first request with a structure waits for it.

The engine never frees what it has compiled. So what that takes is counted; beyond
``max_structures_mib`` the driver opens the engine anew (``is_full``, ``renew``). The child process
ends when it holds half of what it may.
"""

import collections
import contextlib
import json
import queue
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lm_compiler import MEMORY, Compiler
from lm_sampling import Refused

START_S = 120.0  # for the child to load the tokenizer on a busy machine
RETRY_S = 60.0  # until a structure that took too long is tried again
REMEMBERED = 4096
LEAST = 2**14  # bytes that a structure counts, even if it fitted into memory that was free
Structure = tuple[str, str]  # json_schema, regex or grammar, and its text


class CompilerFailed(Exception):
    """There is no child process to compile in; the structure is not the cause."""


@dataclass(frozen=True)
class _Task:
    structure: Structure
    is_cancelled: Callable[[], bool]
    done: Callable[[Exception | None], None]


class Child:
    """The process that compiles. Only one thread may use it."""

    def __init__(self, model: Path, timeout_s: float) -> None:
        self._model, self._timeout_s = model, timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False

    def fault(self, structure: Structure) -> tuple[str, int] | None:
        """Why it cannot be compiled, '' if it can, and the bytes that it takes; None if it took too
        long or too much memory. Raises CompilerFailed."""
        process = self._process or self.start()
        if not self._is_ready and self._reply(process, START_S) is None:
            self.end()
            raise CompilerFailed("the process that compiles structures did not start")
        self._is_ready = True
        assert process.stdin  # noqa: S101 - a pipe
        try:
            process.stdin.write(json.dumps(structure).encode() + b"\n")
            process.stdin.flush()
        except OSError:  # it died since
            self.end()
            raise CompilerFailed("the process that compiles structures has ended") from None
        reply = self._reply(process, self._timeout_s)
        if reply is None:
            self.end()
            return None
        return reply

    def end(self) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process, self._is_ready = None, False

    def start(self) -> "subprocess.Popen[bytes]":
        """Does not wait for it: it takes seconds to load. Raises CompilerFailed."""
        # Isolated, as Triton's own Python is: the packages are those of the interpreter.
        program = Path(__file__).with_name("lm_compiler.py")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(program), str(self._model)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        except OSError as error:
            raise CompilerFailed(f"no process to compile structures in: {error}") from None
        return self._process

    @staticmethod
    def _reply(process: "subprocess.Popen[bytes]", timeout_s: float) -> tuple[str, int] | None:
        """Its next line; None if it ends or is late."""
        assert process.stdout  # noqa: S101 - a pipe
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            # A reply is one short write, so what can be read is a whole line.
            line = process.stdout.readline() if selector.select(timeout_s) else b""
        if not line:
            return None
        fault, size = json.loads(line)
        return str(fault), int(size)


class Structures(threading.Thread):
    """``start`` it. It ends with ``stop``."""

    def __init__(self, model: Path, compiler: Compiler, timeout_s: float, most_mib: int) -> None:
        """``most_mib``: memory for what is compiled in this process."""
        super().__init__(name="structures", daemon=True)
        self._child = Child(model, timeout_s)
        self._compiler, self._timeout_s = compiler, timeout_s
        self._most = most_mib * 2**20
        self._held = self._held_by_child = 0  # bytes
        self._inbox: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        # The fault ('' for none), and until when it is believed.
        self._known: collections.OrderedDict[Structure, tuple[str, float]]
        self._known = collections.OrderedDict()

    def is_good(self, structure: Structure) -> bool:
        """Whether it is known to compile."""
        known = self._known.get(structure)
        return known is not None and not known[0]

    @property
    def is_full(self) -> bool:
        """Whether what was compiled takes more memory than it may: ``renew`` frees it."""
        return self._held > self._most

    def renew(self, compiler: Compiler) -> None:
        """``compiler`` is that of a tokenizer that has compiled nothing yet."""
        self._compiler, self._held = compiler, 0
        faults = [(one, known) for one, known in self._known.items() if known[0]]
        self._known = collections.OrderedDict(faults)

    def compile(
        self,
        structure: Structure,
        is_cancelled: Callable[[], bool],
        done: Callable[[Exception | None], None],
    ) -> None:
        """Calls ``done`` from this thread: with Refused or CompilerFailed, or with None if it
        compiles, or nobody waits for it any more."""
        self._inbox.put(_Task(structure, is_cancelled, done))

    def stop(self) -> None:
        """End the thread and the child; what waits is compiled before."""
        self._inbox.put(None)
        self.join()

    def run(self) -> None:
        with contextlib.suppress(CompilerFailed):  # the first structure tries again, and tells
            self._child.start()
        while (task := self._inbox.get()) is not None:
            error: Exception | None = None
            try:
                fault = "" if task.is_cancelled() else self._fault(task.structure)
                if fault:
                    error = Refused(f"structured_outputs cannot be compiled: {fault}")
            except Exception as failure:  # the thread goes on for the others
                error = failure
            task.done(error)
        self._child.end()

    def _fault(self, structure: Structure) -> str:
        now = time.monotonic()
        fault, until = self._known.get(structure, ("", 0.0))
        if until > now:
            return fault
        compiled, until = self._child.fault(structure), float("inf")
        if compiled is None:
            until = now + RETRY_S
            fault = f"it takes more than {self._timeout_s:g} s or more memory than it may"
        else:
            fault, size = compiled
            self._count(max(size, LEAST))
            if not fault:
                compiler = self._compiler
                fault = compiler.fault(*structure)
                if compiler is not self._compiler:  # the engine has been opened anew since
                    return fault
        self._known[structure] = fault, until
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return fault

    def _count(self, size: int) -> None:
        self._held += size
        self._held_by_child += size
        if self._held_by_child > MEMORY / 2:  # before its limit refuses what is harmless
            self._child.end()
            self._held_by_child = 0
