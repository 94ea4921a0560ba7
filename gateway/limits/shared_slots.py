"""Slots that the workers of one machine share, without a server between them.

A slot is one byte in a file's range that a worker has locked; the file itself stays empty. The
kernel frees the slots of a worker that dies, however it dies. A lock costs about a microsecond, so
this is for limits of a few requests at once, of which a worker's share would be less than one.
"""

import fcntl
import hashlib
import os
from pathlib import Path

MOST = 64  # slots of one limit: finding the last free one means trying all of them


class SharedSlots:
    """Raises OSError if the file cannot be opened. Use one per process and file: closing any
    descriptor of the file would free every slot."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._held: dict[str, list[int]] = {}  # bucket -> its slots that this process holds

    def take(self, bucket: str, amount: int) -> bool:
        """Take one of the ``amount`` slots of the bucket; False if none is free."""
        held, start = self._held.get(bucket, []), _start(bucket)
        for slot in range(amount):
            if slot in held:
                continue
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, start + slot)
            except OSError:
                continue
            self._held.setdefault(bucket, []).append(slot)
            return True
        return False

    def keep(self, bucket: str, most: int) -> None:
        """Free the slots of the bucket that this process holds beyond ``most``."""
        held = self._held.get(bucket)
        if held is None:
            return
        while len(held) > most:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _start(bucket) + held.pop())
        if not held:
            del self._held[bucket]

    def close(self) -> None:
        os.close(self._file)


def _start(bucket: str) -> int:
    """The offset of the bucket's slots: one of 2**54 ranges of 256 bytes."""
    digest = hashlib.blake2b(bucket.encode("utf-8", "backslashreplace"), digest_size=8).digest()
    return (int.from_bytes(digest) >> 10) << 8
