"""Ending what a Triton leaves behind."""

import signal
import subprocess
import sys

import psutil

from serving.triton import launch


def test_a_process_that_ends_by_itself_meanwhile_is_ended_too(monkeypatch):
    """Between the look that finds it alive and the kill: seen once in some thousand stops."""
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    process = psutil.Process(child.pid)
    child.wait()
    monkeypatch.setattr(launch, "_alive", lambda processes, timeout_s: processes)
    launch._end([process], 0)
    assert not process.is_running()


def test_a_process_that_nobody_has_reaped_has_ended():
    """A killed server's Python processes are inherited by one that may take seconds to do so."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    process = psutil.Process(child.pid)
    assert launch._alive([process], 0) == [process]
    launch._end([process], 0)
    assert launch._alive([process], 0) == []
    assert child.wait() == -signal.SIGKILL
