"""Child processes that do not outlive us.

None of our code runs between fork and exec (no ``preexec_fn``): gRPC's fork handlers would run
there too, and abort one child in sixty if the process uses gRPC at the time. Without a
``preexec_fn``, Python starts children with ``vfork``, which calls no handlers.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

# What the child does first: PR_SET_PDEATHSIG (1, <sys/prctl.h>) with SIGTERM (15); then it execs
# the command. The setting survives exec, and applies to the thread that started the child.
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
    """Start a child in its own session (a terminal's Ctrl-C must reach us first); it gets SIGTERM
    when the calling thread ends, even by kill -9."""
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
    """Terminate the child, and kill it if it still runs after ``timeout_s`` seconds."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            child.kill()
    child.wait()


# A line that gives a reason: from Python's logging, from Triton's ("E0101 12:00:00 ..."), an
# exception's last line, or a message that begins with the command's name.
_REASON = re.compile(
    r"^E\d{4} |\b(ERROR|CRITICAL|FATAL)\b|^(gateway|error|bash|python\S*): "
    r"|^[\w.]*(Error|Exception)\b",
    re.IGNORECASE,
)
_TAIL_BYTES = 64 * 1024
_REASON_LENGTH = 300


def why_ended(child: "subprocess.Popen[bytes]", log: Path, begun: int = 0) -> str:
    """How a child ended, and the last line of its log that gives a reason; ``begun`` is the offset
    in the log (bytes) at which this child began to write."""
    code = child.poll() or 0
    if code == -signal.SIGKILL:  # a process that is killed this way cannot log it
        return "killed by SIGKILL: by a user, or because memory ran out"
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
    reasons = [line.strip() for line in lines if _REASON.search(line)]
    return reasons[-1][:_REASON_LENGTH] if reasons else ""
