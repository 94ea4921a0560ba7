"""The Python processes (*stubs*) that Triton runs its Python-based models in.

A stub that was killed leaves a model that answers every request with an error while Triton says it
is ready. The process table tells at once, without asking the model anything.
"""

from dataclasses import dataclass, field
from pathlib import Path

import psutil

from serving.process_start import start_ticks

NAME = "triton_python_backend_stub"


@dataclass(frozen=True)
class Stub:
    """One stub process and the model instance that it runs."""

    pid: int
    model: str
    version: str = ""
    started: int = 0  # clock ticks since the machine's start: a pid may be used again
    region: str = ""  # its shared memory, in /dev/shm
    parent: int = field(default=0, compare=False)  # pid; another one, once that has ended

    def end(self) -> None:
        """End the process if it still runs."""
        try:
            process = psutil.Process(self.pid)
            if start_ticks(self.pid) == self.started:
                process.kill()  # it does not listen to SIGTERM
        except (psutil.Error, OSError):
            return


def live_stubs(server_pid: int) -> set[Stub]:
    """The stubs of a server that are alive now."""
    try:
        children = psutil.Process(server_pid).children(recursive=True)
    except psutil.Error:
        return set()
    found = {stub for child in children if (stub := stub_of(child))}
    # What a model forks has its command line and its memory: a worker of its own, and no instance.
    pids = {stub.pid for stub in found}
    return {stub for stub in found if stub.parent not in pids}


def stub_memory_bytes(server_pid: int, model: str) -> int:
    """The memory that the model's processes have for themselves now; 0 when none runs."""
    pids = {stub.pid for stub in live_stubs(server_pid) if stub.model == model}
    return sum(_own_memory_bytes(pid) for pid in pids)


def _own_memory_bytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_full_info().uss)
    except psutil.Error:
        return 0


def stub_of(process: psutil.Process) -> Stub | None:
    """The stub that a process is; None for any other, and for one that has ended."""
    try:
        command = process.cmdline()
        alive = process.status() != psutil.STATUS_ZOMBIE
        started, parent = start_ticks(process.pid), process.ppid()
    except (psutil.Error, OSError):
        return None
    if not alive or len(command) < 2 or NAME not in command[0]:
        return None
    # Its first argument is REPOSITORY/MODEL/VERSION/FILE, the second its shared memory.
    version = Path(command[1]).parent
    region = command[2] if len(command) > 2 else ""
    return Stub(process.pid, version.parent.name, version.name, started, region, parent)
