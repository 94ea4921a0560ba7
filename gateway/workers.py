"""A worker of several lives no longer than the process that started it.

Else the workers of a gateway that was killed would go on, with the port, and no new gateway could
start.
"""

import ctypes
import multiprocessing
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def follow_parent() -> None:
    """From now on this process gets SIGTERM when its parent ends, by kill -9 too; nothing in a
    process that is no worker."""
    parent = multiprocessing.parent_process()
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent.pid:  # it ended before we asked
        signal.raise_signal(signal.SIGTERM)
