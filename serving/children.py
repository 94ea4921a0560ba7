"""Child processes that do not outlive us.

Nothing of ours runs between fork and exec (no ``preexec_fn``): gRPC's handlers of a fork would run
there too, and abort one child in sixty of a process that is using gRPC meanwhile. Without one,
Python starts children by ``vfork``, which calls no handlers.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

# What the child does first: PR_SET_PDEATHSIG (1, <sys/prctl.h>) with SIGTERM (15); then it becomes
# the command. It holds through exec, and for the thread that started the child.
_LEASHED = """
import ctypes, os, sys
parent, *command = sys.argv[1:]
ctypes.CDLL(None).prctl(1, 15)
if os.getppid() != int(parent):
    sys.exit("the parent has ended")
try:
    os.execvp(command[0], command)
except OSError as error:
    sys.exit(f"{command[0]} cannot be run: {error.strerror}")
"""


def start(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    log: IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own (a terminal's Ctrl-C must reach us first) that gets
    SIGTERM when the thread that called this ends, even by kill -9."""
    try:
        return subprocess.Popen(
            [sys.executable, "-ISc", _LEASHED, str(os.getpid()), *command],
            env=os.environ if environment is None else environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT if log else None,
            start_new_session=True,
        )
    finally:
        if log:
            log.close()


def end(child: "subprocess.Popen[bytes]", timeout_s: float) -> None:
    """Ask it to stop, and after ``timeout_s`` do not ask."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            child.kill()
    child.wait()


# A line that says why: of Python's logging, of Triton's ("E0101 12:00:00 ..."), of an exception's
# last line, or of a command that names itself first.
_REASON = re.compile(
    r"^E\d{4} |\b(ERROR|CRITICAL|FATAL)\b|^(gateway|error|bash|python\S*): "
    r"|^[\w.]*(Error|Exception)\b",
    re.IGNORECASE,
)
_TAIL_BYTES, _SHOWN = 64 * 1024, 300


def why_ended(child: "subprocess.Popen[bytes]", log: Path, begun: int = 0) -> str:
    """How a child ended, and the last line of its log that says why; ``begun`` is where in the log
    (bytes) this child began to write."""
    code = child.poll() or 0
    if code == -signal.SIGKILL:  # whoever is killed so writes nothing of it
        return "killed by SIGKILL: by somebody, or for want of memory"
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    reason = _last_reason(log, begun)
    return f"{how}; its log says: {reason}" if reason else how


def _last_reason(log: Path, begun: int) -> str:
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES, begun if begun <= size else 0))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    found = [line.strip() for line in lines if _REASON.search(line)]
    return found[-1][:_SHOWN] if found else ""
