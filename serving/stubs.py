"""The Python processes (*stubs*) that Triton runs its Python-based models in.

A stub that was killed leaves a model that answers every request with an error while Triton says it
is ready. The process table tells at once, without asking the model anything.
"""

from dataclasses import dataclass
from pathlib import Path

import psutil

NAME = "triton_python_backend_stub"


@dataclass(frozen=True)
class Stub:
    """One stub process and the model instance that it runs."""

    pid: int
    model: str


def live_stubs(server_pid: int) -> set[Stub]:
    """The stubs of a server that are alive now."""
    try:
        children = psutil.Process(server_pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return set()
    return {stub for child in children if (stub := _stub(child))}


def _stub(process: psutil.Process) -> Stub | None:
    try:
        command = process.cmdline()
        alive = process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return None
    if not alive or len(command) < 2 or NAME not in command[0]:
        return None
    return Stub(process.pid, model_of(command))


def model_of(command: list[str]) -> str:
    """The model in a stub's command line, whose first argument is REPOSITORY/MODEL/VERSION/FILE."""
    return Path(command[1]).parent.parent.name
