"""SharedSlots that the workers of one machine share, without a server between them.

A place is one byte of a file's range that a worker has locked; the file itself stays empty. The
kernel gives back the slots of a worker that dies, however it dies. A lock costs about a
microsecond, so this is for limits of a few requests at once, of which a share would be less than
one.
"""

import fcntl
import hashlib
import os
from pathlib import Path

MOST = 64  # slots of one limit: the last one is found by trying all of them


class SharedSlots:
    """OSError when the file cannot be opened. One for each process and file: closing any
    descriptor of the file would give back every place."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._mine: dict[str, list[int]] = {}  # bucket -> its slots that this process holds

    def take(self, bucket: str, amount: int) -> bool:
        """Take one of the ``amount`` slots of the bucket; False if none is free."""
        mine, start = self._mine.get(bucket, []), _start(bucket)
        for place in range(amount):
            if place in mine:
                continue
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, start + place)
            except OSError:
                continue
            self._mine.setdefault(bucket, []).append(place)
            return True
        return False

    def keep(self, bucket: str, most: int) -> None:
        """Give back what this process holds of the bucket beyond ``most``."""
        mine = self._mine.get(bucket)
        if mine is None:
            return
        while len(mine) > most:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _start(bucket) + mine.pop())
        if not mine:
            del self._mine[bucket]

    def close(self) -> None:
        os.close(self._file)


def _start(bucket: str) -> int:
    """Where the bucket's slots begin, of 2**54 ranges of 256 bytes."""
    digest = hashlib.blake2b(bucket.encode("utf-8", "backslashreplace"), digest_size=8).digest()
    return (int.from_bytes(digest) >> 10) << 8
