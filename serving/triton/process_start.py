"""When a process was started, by a clock that is never set.

psutil's ``create_time`` moves when the machine's clock is set: by NTP after a boot, or when a
virtual machine resumes. A process would then no longer be recognized as the one seen before.
"""

from pathlib import Path

_STATE_FIELD, _START_FIELD = 3 - 3, 22 - 3  # of proc_pid_stat(5), after the name


def start_ticks(pid: int) -> int:
    """Clock ticks from the machine's boot to the process's start; OSError if it has ended."""
    return int(_fields(pid)[_START_FIELD])


def is_running(pid: int, started: int) -> bool:
    """Whether the process that was started at this tick still runs: it is not gone, its id is not
    another's, and it is no zombie, which its parent has not noticed yet."""
    try:
        fields = _fields(pid)
    except OSError:
        return False
    return int(fields[_START_FIELD]) == started and fields[_STATE_FIELD] != "Z"


def _fields(pid: int) -> list[str]:
    stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    return stat.rpartition(")")[2].split()  # the name before may contain anything
