"""Ending what a Triton leaves behind."""

import subprocess
import sys

import psutil

from serving.triton import launch


def test_a_process_that_ends_by_itself_meanwhile_is_ended_too(monkeypatch):
    """Between the look that finds it alive and the kill: seen once in some thousand stops."""
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    process = psutil.Process(child.pid)
    child.wait()
    monkeypatch.setattr(psutil, "wait_procs", lambda processes, timeout: ([], processes))
    launch._end([process])
    assert not process.is_running()
