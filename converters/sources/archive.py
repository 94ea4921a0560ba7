"""Untrusted zip files: their directory is checked before anything is unpacked.

A skops model, a torch ``.pt`` or ``.bin`` and an ``.npz`` are all zip files.
"""

import zipfile
from pathlib import Path

from converters.errors import SourceMissing, SourceRefused

# Deflate compresses at most 1032 to 1. Trained weights compress 1.1 to 1, a table of trees 20 to 1.
RATIO_LIMIT = 200
# Small members may compress at any ratio: a page of zeros is not a bomb.
RATIO_FREE_BYTES = 1024 * 1024
TOTAL_LIMIT_BYTES = 64 * 1024**3
MEMBER_LIMIT = 100_000


def require_no_bomb(path: Path) -> None:
    """Raise SourceRefused if ``path`` is a zip that would unpack to far more than its size;
    SourceMissing if there is no such file.

    A file that is not a zip passes: its own reader decides.
    """
    if not path.is_file():
        raise SourceMissing(f"there is no file {path}: check the path")
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise SourceRefused(f"{path} is a broken zip file ({error}): copy it again") from error
    _check(path, members)


def _check(path: Path, members: list[zipfile.ZipInfo]) -> None:
    packed, total = path.stat().st_size, sum(member.file_size for member in members)
    if len(members) > MEMBER_LIMIT or total > TOTAL_LIMIT_BYTES:
        raise SourceRefused(
            f"{path} unpacks to {len(members)} files with {total} bytes in all: no model that is "
            "served here is that large"
        )
    largest = max(members, key=lambda member: member.file_size, default=None)
    # Compare with the whole file too: overlapping members each look harmless.
    if largest and max(_ratio(largest), total / packed) > RATIO_LIMIT and total > RATIO_FREE_BYTES:
        raise SourceRefused(
            f"{path} looks like a zip bomb: {packed} bytes unpack to {total} ({largest.filename!r} "
            f"alone to {largest.file_size}). If the model is yours, save it again without "
            "compression"
        )


def _ratio(member: zipfile.ZipInfo) -> float:
    return member.file_size / max(1, member.compress_size)
