"""Zip files from strangers: their directory is read before anything is unpacked.

A skops model, a torch ``.pt`` or ``.bin`` and an ``.npz`` are all zip files.
"""

import zipfile
from pathlib import Path

from converters.errors import SourceMissing, SourceRefused

# Deflate shrinks no more than 1032 to 1. Trained weights shrink 1.1 to 1, a table of trees 20 to 1.
RATIO_LIMIT = 200
# Small members compress as they like: a page of zeros is no bomb.
RATIO_FREE_BYTES = 1024 * 1024
TOTAL_LIMIT_BYTES = 64 * 1024**3
MEMBER_LIMIT = 100_000


def require_no_bomb(path: Path) -> None:
    """SourceRefused when ``path`` is a zip that would unpack to far more than it is.

    A file that is no zip passes: its own reader has the last word.
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
            f"{path} unpacks to {len(members)} files of {total} bytes: no model that is served "
            "here is that large"
        )
    worst = max(members, key=lambda member: member.file_size, default=None)
    # Against the whole file too: overlapping members each look harmless.
    if worst and max(_ratio(worst), total / packed) > RATIO_LIMIT and total > RATIO_FREE_BYTES:
        raise SourceRefused(
            f"{path} looks like a zip bomb: {packed} bytes unpack to {total} "
            f"({worst.filename!r} alone to {worst.file_size}). Save the model again without "
            "compression if it is yours"
        )


def _ratio(member: zipfile.ZipInfo) -> float:
    return member.file_size / max(1, member.compress_size)
