"""CPU time of the processes under load, from ``/proc``: steadier than throughput where others use
the machine too."""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_STUB = "triton_python_backend_stub"
_VM_HWM = re.compile(r"VmHWM:\s+(\d+) kB")
_INSTANCE = re.compile(r"([^/]+)_\d+_\d+")


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    cpu_s: float  # user and system, of all its threads, since its start


@dataclass(frozen=True)
class ProcessTree:
    """A server's process and its descendants. ``name_of`` names one from its command line, whose
    name stands for its children too unless they have their own; '' for none."""

    root: int
    name_of: Callable[[list[str]], str]

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far by name, without processes that have ended."""
        processes = running_processes()
        totals: dict[str, float] = {}
        for pid, name in self._names(processes).items():
            totals[name] = totals.get(name, 0.0) + processes[pid].cpu_s
        return totals

    def pids(self, name: str = "") -> list[int]:
        """Its processes, or those of this name."""
        names = self._names(running_processes())
        return [pid for pid in names if not name or names[pid] == name]

    def reset_peaks(self, name: str) -> None:
        """Count the peak memory of the processes of this name from now on."""
        for pid in self.pids(name):
            (PROC / str(pid) / "clear_refs").write_text("5")

    def peak_mib(self, name: str) -> float:
        """The peak of their resident memory; what they share counts for each."""
        peaks = (
            _VM_HWM.search((PROC / str(pid) / "status").read_text()) for pid in self.pids(name)
        )
        return sum(int(peak[1]) for peak in peaks if peak) / 1024

    def _names(self, processes: Mapping[int, Process]) -> dict[int, str]:
        """The tree's processes and their names."""
        children: dict[int, list[int]] = {}
        for process in processes.values():
            children.setdefault(process.parent, []).append(process.pid)
        names: dict[int, str] = {}
        waiting = [(self.root, "other")] if self.root in processes else []
        while waiting:
            pid, inherited = waiting.pop()
            names[pid] = name = self.name_of(_command_line(pid)) or inherited
            waiting += [(child, name) for child in children.get(pid, ())]
        return names


def used_between(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """CPU seconds by name; a process that was started meanwhile counts from its start."""
    return {name: max(0.0, seconds - before.get(name, 0.0)) for name, seconds in after.items()}


def running_processes() -> dict[int, Process]:
    processes = filter(None, map(_read, _pids()))
    return {process.pid: process for process in processes}


def stack_process(command: list[str]) -> str:
    """The name of one of Tidegate's processes, from its command line; '' for others."""
    program = Path(command[0]).name if command else ""
    if program == "tritonserver":
        return "tritonserver"
    if program == _STUB:
        return f"stub {_stub_model(command)}"
    if "-m" in command:
        return {"gateway": "gateway", "tidegate": "up"}.get(command[command.index("-m") + 1], "")
    return ""


def _stub_model(command: list[str]) -> str:
    """The model of a stub: one of its arguments is the instance, NAME_0_1."""
    instances = filter(None, map(_INSTANCE.fullmatch, command))
    return next((instance[1] for instance in instances), "unknown")


def _pids() -> Iterable[int]:
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdecimal()]


def _read(pid: int) -> Process | None:
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:  # it has ended
        return None
    fields = text[text.rindex(")") + 2 :].split()  # a program's name may have spaces
    return Process(pid, int(fields[1]), (int(fields[11]) + int(fields[12])) * TICK_S)


def _command_line(pid: int) -> list[str]:
    try:
        return (PROC / str(pid) / "cmdline").read_text().split("\0")
    except OSError:
        return []
