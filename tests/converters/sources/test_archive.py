"""Zip files are checked before they are unpacked."""

import zipfile

import numpy as np
import pytest

from converters.errors import SourceMissing, SourceRefused
from converters.sources import archive
from converters.sources.archive import require_no_bomb


def _zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in members.items():
            target.writestr(name, content)
    return path


def test_ordinary_archives_pass(tmp_path):
    weights = np.random.default_rng(0).standard_normal(300_000)
    np.savez(tmp_path / "plain.npz", weights=weights)
    np.savez_compressed(tmp_path / "compressed.npz", weights=weights)
    require_no_bomb(tmp_path / "plain.npz")
    require_no_bomb(tmp_path / "compressed.npz")
    require_no_bomb(_zip(tmp_path / "small.zip", {"zeros": b"\0" * 100_000}))


def test_a_file_that_is_not_a_zip_is_left_to_its_reader(tmp_path):
    (tmp_path / "x").write_bytes(b"\x80\x02")
    require_no_bomb(tmp_path / "x")


def test_a_bomb_is_refused_by_its_directory_alone(tmp_path):
    path = _zip(tmp_path / "bomb.pt", {"data/0": b"\0" * 30_000_000, "version": b"3"})
    with pytest.raises(SourceRefused, match=r"bomb.*'data/0' alone to 30000000"):
        require_no_bomb(path)


def test_a_declared_size_is_checked_before_unpacking(tmp_path):
    """The directory declares 2 GB, the file holds a few bytes: nothing is read to find out."""
    path = _zip(tmp_path / "lie.skops", {"x.npy": b"abc" * 100})
    raw = bytearray(path.read_bytes())
    entry = raw.rindex(b"PK\x01\x02")
    raw[entry + 24 : entry + 28] = (2**31 - 1).to_bytes(4, "little")
    path.write_bytes(raw)
    with pytest.raises(SourceRefused, match="bomb"):
        require_no_bomb(path)


def test_too_many_members_and_a_missing_file(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MEMBER_LIMIT", 100)
    path = _zip(tmp_path / "many.zip", {str(index): b"" for index in range(101)})
    with pytest.raises(SourceRefused, match="101 files"):
        require_no_bomb(path)
    with pytest.raises(SourceMissing):
        require_no_bomb(tmp_path / "nothing.zip")
