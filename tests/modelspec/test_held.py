"""What is held has a living owner, whoever asks, and whatever its pid is."""

import subprocess
import sys

from modelspec.held import abandoned_folders, held_file, held_folder, is_held, is_held_folder
from tests.running import wait_until

OWNER = """
import sys, time
from pathlib import Path
from modelspec.held import held_folder
with held_folder(Path(sys.argv[1]), "mood") as folder:
    print(folder, flush=True)
    time.sleep(600)
"""


def test_a_folder_is_held_until_its_owner_ends_however_it_ends(tmp_path):
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        try:
            assert owner.stdout.readline()
            assert abandoned_folders(tmp_path) == []
        finally:
            owner.kill()
    (left,) = tmp_path.iterdir()
    assert is_held_folder(left)
    wait_until(lambda: abandoned_folders(tmp_path) == [left], 30, "the end of its lock")


def test_a_folder_is_removed_in_the_end(tmp_path):
    with held_folder(tmp_path, "mood") as folder:
        (folder / "file").touch()
        assert is_held(folder)
        assert folder.name.startswith("mood+")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_held_until_it_is_closed(tmp_path):
    file = held_file(tmp_path / "owner")
    assert is_held(tmp_path / "owner")
    file.close()
    assert not is_held(tmp_path / "owner")
    assert not is_held(tmp_path / "none")
    assert list(tmp_path.iterdir()) == [tmp_path / "owner"]
