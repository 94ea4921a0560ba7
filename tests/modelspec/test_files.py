"""Files are written whole or not at all; a lock ends with its owner."""

import os
import subprocess
import sys
import threading

import pytest

from modelspec.files import atomic_write, file_sha256, lock, write_private

OWNER = """
import sys, time
from modelspec.files import lock
file = open(sys.argv[1], "a+")
assert lock(file)
print("locked", flush=True)
time.sleep(600)
"""


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "file"
    atomic_write(path, "old")
    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(OSError, match="full"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_threads_write_the_same_file_without_disturbing_each_other(tmp_path):
    path, failed = tmp_path / "file", []

    def write(content):
        try:
            for _ in range(10):
                atomic_write(path, content)
                assert path.read_text() in contents
        except (OSError, AssertionError) as error:
            failed.append(error)

    contents = [letter * 10_000 for letter in "abcd"]
    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_removed_and_a_write_under_way_is_not(tmp_path):
    left, under_way = tmp_path / ".file.12.tmp", tmp_path / ".file.0a1b2c3d.tmp"
    for temporary in (left, under_way):
        temporary.touch()
    os.utime(left, (0, 0))
    atomic_write(tmp_path / "file", "new")
    assert set(tmp_path.iterdir()) == {tmp_path / "file", under_way}


def _full(descriptor):
    raise OSError("the disk is full")


def test_a_link_stays_one_and_others_read_what_was_written(tmp_path):
    shared, folder = tmp_path / "shared" / "keys.toml", tmp_path / "home"
    folder.mkdir()
    (folder / "keys.toml").symlink_to(shared)
    write_private(shared, b"old")
    write_private(folder / "keys.toml", b"new")
    assert (folder / "keys.toml").is_symlink()
    assert shared.read_bytes() == b"new"
    assert list(folder.iterdir()) == [folder / "keys.toml"]


def test_a_private_file_is_private(tmp_path):
    path = tmp_path / "new" / "secret"
    write_private(path, b"secret")
    assert path.stat().st_mode & 0o777 == 0o600
    assert file_sha256(path).startswith("2bb80d53")


def test_a_lock_ends_with_the_process_that_was_killed(tmp_path):
    path = tmp_path / "file"
    command = [sys.executable, "-c", OWNER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as owner:
        try:
            assert owner.stdout.readline() == b"locked\n"
            with path.open() as file:
                assert not lock(file, shared=True)
                assert not lock(file, wait_s=0.05)
        finally:
            owner.kill()
    with path.open() as file, path.open() as other:
        assert lock(file, wait_s=10, shared=True)
        assert lock(other, shared=True)
        assert not lock(other)
