"""Keep log files from growing for ever, those of programs that know nothing of it too.

A file that is too long is copied to ``NAME.1`` (what was there becomes ``NAME.2``, and so on) and
emptied. Its writers append, so they go on at its beginning, whoever they are: Triton, its models'
processes, the gateway's workers.
"""

import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

LOOK_EVERY_S = 1.0
TROUBLE_S = 60.0


class LogKeeper:
    """``start`` it, and ``stop`` it. ``limit_bytes`` is how long a file becomes, about; ``kept`` is
    how many older ones stay; what cannot be done is told by ``tell``, once."""

    def __init__(
        self, logs: Sequence[Path], limit_bytes: int, kept: int, tell: Callable[[str], None]
    ) -> None:
        self._logs, self._limit_bytes, self._kept, self._tell = logs, limit_bytes, kept, tell
        self._ended = threading.Event()
        self._told: dict[Path, str] = {}  # why the file could not be rotated the last time
        self._thread = threading.Thread(target=self._run, name="logs", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        pause_s = 0.0
        while not self._ended.wait(pause_s):
            pause_s = LOOK_EVERY_S
            for log in self._logs:
                try:
                    if log.is_file() and log.stat().st_size > self._limit_bytes:
                        rotate(log, self._kept)
                        self._told.pop(log, None)
                except OSError as error:
                    pause_s = TROUBLE_S
                    self._say(log, error.strerror or str(error))

    def _say(self, log: Path, why: str) -> None:
        if self._told.get(log) != why:
            self._told[log] = why
            self._tell(f"{log} cannot be rotated: {why}")


def rotate(log: Path, kept: int) -> None:
    """Move what is in the file into ``NAME.1``. What is written in the instant between the end of
    the copy and the emptying is lost."""
    for number in range(kept, 0, -1):
        older = _older(log, number)
        if number == kept:
            older.unlink(missing_ok=True)
        elif older.exists():
            older.replace(_older(log, number + 1))
    with log.open("r+b") as file:
        if kept:
            copy = _older(log, 1)
            try:
                with copy.open("xb") as target:
                    os.fchmod(target.fileno(), log.stat().st_mode & 0o777)
                    shutil.copyfileobj(file, target, 1024 * 1024)
            except OSError:
                copy.unlink(missing_ok=True)
                raise
        file.truncate(0)


def _older(log: Path, number: int) -> Path:
    return log.with_name(f"{log.name}.{number}")
