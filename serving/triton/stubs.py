"""The Python processes (*stubs*) that Triton runs its Python-based models in.

A stub that was killed leaves a model that answers every request with an error while Triton says it
is ready. The process table shows this at once, without a request to the model.
"""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from serving.triton.process_start import is_running, start_ticks

NAME = "triton_python_backend_stub"


@dataclass(frozen=True)
class Stub:
    """One stub process and the model instance that it runs."""

    pid: int
    model: str
    version: str = ""
    started: int = 0  # clock ticks since the machine's boot: a pid may be reused
    region: str = ""  # its shared memory, in /dev/shm
    parent: int = field(default=0, compare=False)  # pid; changes when the parent ends

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs. Takes 0.1 ms, where ``live_stubs`` reads every process
        of the machine."""
        return is_running(self.pid, self.started)

    def end(self) -> None:
        """End the process if it still runs."""
        try:
            process = psutil.Process(self.pid)
            if start_ticks(self.pid) == self.started:
                process.kill()  # it ignores SIGTERM
        except (psutil.Error, OSError):
            return


def live_stubs(server_pid: int) -> set[Stub]:
    """The stubs of a server that are alive now."""
    try:
        children = psutil.Process(server_pid).children(recursive=True)
    except psutil.Error:
        return set()
    stubs = {stub for child in children if (stub := stub_of(child))}
    # A process that a model forks has the same command line and memory: it is a worker of the
    # model's, not an instance.
    pids = {stub.pid for stub in stubs}
    return {stub for stub in stubs if stub.parent not in pids}


def stub_memory_bytes(server_pid: int, model: str) -> int:
    """The memory (USS) that the model's processes, and those that they have started, use now; 0 if
    none runs."""
    pids = {stub.pid for stub in live_stubs(server_pid) if stub.model == model}
    return sum(_unique_memory_bytes(pid) for pid in pids)


def _unique_memory_bytes(pid: int) -> int:
    total = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += int(one.memory_full_info().uss)
    return total


def stub_of(process: psutil.Process) -> Stub | None:
    """The process as a stub; None if it is not one, or has ended."""
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
