"""The key that a Triton gets, and ending what one leaves behind."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

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


@pytest.mark.parametrize(
    ("tunables", "expected"),
    [
        ("", "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.arena_max=2", "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
    ],
)
def test_huge_pages_are_asked_for_unless_the_user_has_decided(tunables, expected):
    assert launch.with_huge_pages(tunables) == expected


def test_what_a_model_allocates_gets_huge_pages():
    """Of 64 MiB; a kernel that gives none to anybody is told apart by what it says."""
    script = (
        "held = bytearray(b'x') * 2**26\n"
        "lines = open('/proc/self/smaps').read().splitlines()\n"
        "print(sum(int(line.split()[1]) for line in lines if line.startswith('AnonHugePages')))"
    )
    environment = {**os.environ, "GLIBC_TUNABLES": launch.with_huge_pages("")}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    gives_none = not setting.exists() or "[never]" in setting.read_text()
    kib = int(result.stdout)
    assert kib == 0 if gives_none else kib >= 32 * 1024
