"""Files that were written long ago: a gateway that starts waits while gateway.toml may still be
being written, for a second after its last change."""

import os
from pathlib import Path

LONG_AGO = 1_700_000_000.0  # Unix time


def settle(path: Path) -> None:
    """The file was last written long ago."""
    os.utime(path, (LONG_AGO, LONG_AGO))


def write_settled(path: Path, text: str, encoding: str = "utf-8") -> None:
    """Write the file as if long ago."""
    path.write_text(text, encoding=encoding)
    settle(path)
