"""Whose a file is: its owner holds a lock for as long as it lives, however it ends.

The kernel keeps the lock, so that a reader in another container sees it too: a pid means nothing
there, or is another process's. A restarted container may even have the pids of the killed one.
"""

import contextlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from modelspec.files import PRIVATE, lock

_HELD = re.compile(r".*\+held\+[^+]+")


@contextlib.contextmanager
def held_folder(parent: Path, what: str) -> Iterator[Path]:
    """A new folder in ``parent`` with ``what`` in its name, which is removed in the end. Until then
    ``abandoned_folders`` does not name it, whichever container asks."""
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=f"{what}+"))
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        lock(descriptor)
        # It gets the name that is judged by the lock only when it has the lock.
        folder = folder.rename(parent / f"{what}+held+{secrets.token_hex(4)}")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def is_held_folder(path: Path) -> bool:
    """Whether ``held_folder`` made it, whoever did."""
    return _HELD.fullmatch(path.name) is not None


def abandoned_folders(parent: Path) -> list[Path]:
    """What owners that were killed left of ``held_folder``."""
    folders = [path for path in parent.iterdir() if is_held_folder(path)]
    return [path for path in folders if not is_held(path)]


def held_file(path: Path, data: bytes = b"", mode: int = PRIVATE) -> IO[bytes]:
    """Write the whole file or nothing, held until the result is closed; OSError if it cannot be
    written."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    file = os.fdopen(descriptor, "wb")
    try:
        os.fchmod(descriptor, mode)
        file.write(data)
        file.flush()
        os.fsync(descriptor)
        lock(file)
        Path(name).replace(path)
    except BaseException:
        file.close()
        Path(name).unlink(missing_ok=True)
        raise
    return file


def is_held(path: Path) -> bool:
    """Whether the owner of the file or folder lives. One that cannot be opened is held, since it is
    another user's; one that is gone is not."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        return not lock(descriptor, shared=True)
    finally:
        os.close(descriptor)
