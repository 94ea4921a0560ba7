"""The key that a Triton gets, and ending what one leaves behind."""

import signal
import subprocess
import sys
import threading

import psutil
import pytest

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


@pytest.mark.parametrize("left", [None, "", "\n"], ids=["none", "empty", "blank"])
def test_starts_at_the_same_time_agree_on_the_key(tmp_path, left):
    """An empty file is what a full disk leaves of a key."""
    path = tmp_path / ".tidegate" / "triton.key"
    if left is not None:
        path.parent.mkdir()
        path.write_text(left)
    keys: list[str] = []
    threads = [
        threading.Thread(target=lambda: keys.append(launch._restricted_key(path))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert set(keys) == {path.read_text()}
    assert len(keys[0]) == 64
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]
