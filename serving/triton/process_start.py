"""When a process was started, by a clock that is never set.

psutil's ``create_time`` moves when the machine's clock is set: by NTP after a boot, or when a
virtual machine resumes. A process would then no longer be recognized as the one seen before.
"""

from pathlib import Path

_START_FIELD = 22 - 3  # of proc_pid_stat(5), after the name, which may contain anything


def start_ticks(pid: int) -> int:
    """Clock ticks from the machine's boot to the process's start; OSError if it has ended."""
    stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    return int(stat.rpartition(")")[2].split()[_START_FIELD])
