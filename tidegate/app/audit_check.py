"""Walk the audit log's chain and say which line was changed, removed, moved or cut off."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from gateway.audit.log import CHAIN, FIRST, LOG, AuditError, Head, locked, read_head

MAX_FAULTS = 100  # faults, and gaps; one is enough to distrust the log


@dataclass
class Report:
    """``first`` is above 1 when older files were removed: their lines are not checked."""

    first: int
    last: int = 0
    hash: str = FIRST  # of the last line: note it elsewhere, and compare
    faults: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)  # decisions that the log itself says it lacks


def verify(folder: Path, pepper: bytes) -> Report:
    """Check every line signed so far; the log may keep growing meanwhile."""
    with contextlib.ExitStack() as stack:
        with locked(folder):
            try:
                head, unsigned = read_head(folder, pepper), ""
            except AuditError as error:
                head, unsigned = Head(), str(error)
            old = sorted(folder.glob("audit.[0-9]*.log"))
            files = [*old, folder / LOG] if (folder / LOG).exists() else old
            handles = [stack.enter_context(path.open("rb")) for path in files]
            size = (folder / LOG).stat().st_size if files[len(old) :] else 0
        walk = _Walk(int(old[0].name.split(".")[1]) if old else head.first)
        for handle in handles:
            for number, line in enumerate(_lines(handle, size), 1):
                walk.line(line, f"{Path(handle.name).name}:{number}")
        return walk.ended(head, unsigned, size)


def missing(report: Report, first: int) -> str:
    """The lines from ``first`` on that are missing, as a message; '' if none are."""
    if report.first <= first:
        return ""
    return (
        f"lines {first} to {report.first - 1} are missing: the files that held them "
        f"(audit.NUMBER.log with a number below {report.first}, or an earlier audit.log) are gone; "
        f"if you removed them yourself, pass --first {report.first}"
    )


def _lines(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The file's lines; of the log that is still growing, only those below ``size`` bytes."""
    end = size if Path(file.name).name == LOG else os.fstat(file.fileno()).st_size
    while file.tell() < end:
        yield file.readline().removesuffix(b"\n")


class _Walk:
    """Walks along the chain; ``expected`` is the number that the next line should have."""

    def __init__(self, first: int) -> None:
        self.report = Report(first)
        self.expected = first
        self.before = FIRST if first == 1 else None
        self.missing: set[int] = set()

    def line(self, line: bytes, position: str) -> None:
        fields = _fields(line)
        if fields is None:
            self._fault(f"line {self.expected} was changed: {position} cannot be read")
            self.expected, self.before = self.expected + 1, None
            return
        number, is_linked = fields["number"], fields["before"] == self.before
        if number < self.expected and not is_linked:
            self._out_of_order(number)
            return
        if number > self.expected and not is_linked:
            end = min(number, self.expected + MAX_FAULTS)
            self.missing.update(range(self.expected, end))
        elif number != self.expected:
            self._fault(f"line {self.expected} was changed: it is numbered {number}")
            number = self.expected
        elif not is_linked and self.before is not None:
            self._fault(f"line {number - 1}, or its hash in line {number}, was changed")
        self.expected, self.before = number + 1, hashlib.sha256(line).hexdigest()
        if fields.get("decision") == "lost" and len(self.report.gaps) < MAX_FAULTS:
            count = fields.get("status")
            loss = (
                f"the log was removed or replaced under the running gateway, after line {count}"
                if fields.get("action") == CHAIN
                else f"{count} decisions were lost"
            )
            self.report.gaps.append(f"line {number}: {loss}")

    def ended(self, head: Head, unsigned: str, size: int) -> Report:
        last, report = self.expected - 1, self.report
        for number in sorted(self.missing):
            self._fault(f"line {number} was removed")
        if unsigned:
            report.faults.append(unsigned)
        elif last < head.number:
            report.faults.append(f"lines {last + 1} to {head.number} were cut off")
        elif last > head.number or size > head.size:
            report.faults.append(f"what follows line {head.number} was not signed")
        elif self.before not in (None, head.hash):
            report.faults.append(f"line {last} was changed")
        report.last, report.hash = last, self.before or ""
        return report

    def _out_of_order(self, number: int) -> None:
        """Report a line that belongs earlier in the log."""
        if number in self.missing:
            self.missing.discard(number)
            self._fault(f"line {number} was moved: it comes after line {self.expected - 1}")
        else:
            self._fault(f"line {number} appears twice, or its number was changed")

    def _fault(self, text: str) -> None:
        if len(self.report.faults) < MAX_FAULTS:
            self.report.faults.append(text)


def _fields(line: bytes) -> dict[str, Any] | None:
    try:
        fields = orjson.loads(line)
    except ValueError:
        return None
    if not isinstance(fields, dict) or not isinstance(fields.get("before"), str):
        return None
    return fields if type(fields.get("number")) is int else None
