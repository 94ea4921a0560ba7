"""Child processes that do not outlive us.

Nothing of ours runs between fork and exec (no ``preexec_fn``): gRPC's handlers of a fork would run
there too, and abort one child in sixty of a process that is using gRPC meanwhile. Without one,
Python starts children by ``vfork``, which calls no handlers.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
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
