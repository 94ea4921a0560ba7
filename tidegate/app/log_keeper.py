"""Rotates log files by size, including those of programs that do not take part in it.

A file that is too long is copied to ``NAME.1`` (the previous one becomes ``NAME.2``, and so on) and
truncated. Its writers append, so they continue at its beginning: Triton, its models' processes,
the gateway's workers.
"""

import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

LOOK_EVERY_S = 1.0
TROUBLE_S = 60.0


class LogKeeper:
    """``limit_bytes`` is the approximate size at which a file is rotated, ``backups`` the number of
    older files to keep; a failure is reported through ``report``, once."""

    def __init__(
        self, logs: Sequence[Path], limit_bytes: int, backups: int, report: Callable[[str], None]
    ) -> None:
        self._logs, self._limit_bytes, self._backups, self._report = (
            logs,
            limit_bytes,
            backups,
            report,
        )
        self._ended = threading.Event()
        self._reported: dict[Path, str] = {}  # why the file could not be rotated last time
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
                        rotate(log, self._backups)
                        self._reported.pop(log, None)
                except OSError as error:
                    pause_s = TROUBLE_S
                    self._report_once(log, error.strerror or str(error))

    def _report_once(self, log: Path, reason: str) -> None:
        if self._reported.get(log) != reason:
            self._reported[log] = reason
            self._report(f"{log} cannot be rotated: {reason}")


def rotate(log: Path, backups: int) -> None:
    """Move the file's contents into ``NAME.1``. Whatever is written between the end of the copy and
    the truncation is lost."""
    for number in range(backups, 0, -1):
        older = _older(log, number)
        if number == backups:
            older.unlink(missing_ok=True)
        elif older.exists():
            older.replace(_older(log, number + 1))
    with log.open("r+b") as file:
        if backups:
            copy = _older(log, 1)
            try:
                with copy.open("xb") as copied:
                    os.fchmod(copied.fileno(), log.stat().st_mode & 0o777)
                    shutil.copyfileobj(file, copied, 1024 * 1024)
            except OSError:
                copy.unlink(missing_ok=True)
                raise
        file.truncate(0)


def _older(log: Path, number: int) -> Path:
    return log.with_name(f"{log.name}.{number}")
