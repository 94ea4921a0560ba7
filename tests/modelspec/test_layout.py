"""Version folders: numbers as Triton reads them, whatever else is there."""

from modelspec.layout import version_folders


def test_only_ascii_digits_are_a_version(tmp_path):
    for name in ("1", "12", "²", "٣", "x", "-1", "1.5"):
        (tmp_path / name).mkdir()
    (tmp_path / "7").touch()
    assert version_folders(tmp_path) == [1, 12]
