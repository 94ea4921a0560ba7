"""When a process was started, by a clock that nobody sets.

What psutil says (``create_time``) moves when the machine's clock is set: by NTP after a start, or
when a virtual machine goes on. A process would then no longer be the one that was seen before.
"""

from pathlib import Path

_START_FIELD = 22 - 3  # of proc_pid_stat(5), behind the name, which may hold anything


def start_ticks(pid: int) -> int:
    """Clock ticks from the machine's start to the process's; OSError when it has ended."""
    stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    return int(stat.rpartition(")")[2].split()[_START_FIELD])
