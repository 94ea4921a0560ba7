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

MAX_FAULTS = 100  # of each kind; one is enough to distrust the log


@dataclass
class Report:
    """``first`` is over 1 when older files were taken away: their lines are not looked at."""

    first: int
    last: int = 0
    hash: str = FIRST  # of the last line: note it elsewhere, and compare
    faults: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)  # decisions that the log itself says it lacks


def verify(folder: Path, pepper: bytes) -> Report:
    """Check every line that was signed until now; the log may go on growing meanwhile."""
    with contextlib.ExitStack() as stack:
        with locked(folder):
            try:
                head, unsigned = read_head(folder, pepper), ""
            except AuditError as error:
                head, unsigned = Head(), str(error)
            old = sorted(folder.glob("audit.[0-9]*.log"))
            paths = [*old, folder / LOG] if (folder / LOG).exists() else old
            files = [stack.enter_context(path.open("rb")) for path in paths]
            size = (folder / LOG).stat().st_size if paths[len(old) :] else 0
        walk = _Walk(int(old[0].name.split(".")[1]) if old else head.first)
        for file in files:
            for place, line in enumerate(_lines(file, size), 1):
                walk.line(line, f"{Path(file.name).name}:{place}")
        return walk.ended(head, unsigned, size)


def missing(report: Report, first: int) -> str:
    """What should be here, if line ``first`` should, and is not; '' if nothing."""
    if report.first <= first:
        return ""
    return (
        f"lines {first} to {report.first - 1} are missing: what held them, audit.NUMBER.log of "
        f"numbers below {report.first} or an earlier audit.log, is not here; if you took "
        f"them away yourself, say --first {report.first}"
    )


def _lines(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The file's lines; of the one that grows, those that were there when we looked."""
    end = size if Path(file.name).name == LOG else os.fstat(file.fileno()).st_size
    while file.tell() < end:
        yield file.readline().removesuffix(b"\n")


class _Walk:
    """Goes along the chain; ``expected`` is the number that the next line should have."""

    def __init__(self, first: int) -> None:
        self.report = Report(first)
        self.expected = first
        self.before = FIRST if first == 1 else None
        self.missing: set[int] = set()

    def line(self, line: bytes, place: str) -> None:
        fields = _fields(line)
        if fields is None:
            self._fault(f"line {self.expected} was changed: {place} cannot be read")
            self.expected, self.before = self.expected + 1, None
            return
        number, linked = fields["number"], fields["before"] == self.before
        if number < self.expected and not linked:
            self._returned(number)
            return
        if number > self.expected and not linked:
            end = min(number, self.expected + MAX_FAULTS)
            self.missing.update(range(self.expected, end))
        elif number != self.expected:
            self._fault(f"line {self.expected} was changed: it says that it is line {number}")
            number = self.expected
        elif not linked and self.before is not None:
            self._fault(f"line {number - 1}, or its hash in line {number}, was changed")
        self.expected, self.before = number + 1, hashlib.sha256(line).hexdigest()
        if fields.get("decision") == "lost" and len(self.report.gaps) < MAX_FAULTS:
            count = fields.get("status")
            what = (
                f"the log was removed or replaced under the running gateway, after line {count}"
                if fields.get("action") == CHAIN
                else f"{count} decisions were lost"
            )
            self.report.gaps.append(f"line {number}: {what}")

    def ended(self, head: Head, unsigned: str, size: int) -> Report:
        last, report = self.expected - 1, self.report
        for number in sorted(self.missing):
            self._fault(f"line {number} was removed")
        if unsigned:
            report.faults.append(unsigned)
        elif last < head.number:
            report.faults.append(f"lines {last + 1} to {head.number} were cut off")
        elif last > head.number or size > head.size:
            report.faults.append(f"what stands after line {head.number} was not signed")
        elif self.before not in (None, head.hash):
            report.faults.append(f"line {last} was changed")
        report.last, report.hash = last, self.before or ""
        return report

    def _returned(self, number: int) -> None:
        """A line that should have stood earlier."""
        if number in self.missing:
            self.missing.discard(number)
            self._fault(f"line {number} was moved: it stands after line {self.expected - 1}")
        else:
            self._fault(f"line {number} stands twice, or its number was changed")

    def _fault(self, text: str) -> None:
        if len(self.report.faults) < MAX_FAULTS:
            self.report.faults.append(text)


def _fields(line: bytes) -> dict[str, Any] | None:
    try:
        found = orjson.loads(line)
    except ValueError:
        return None
    if not isinstance(found, dict) or not isinstance(found.get("before"), str):
        return None
    return found if type(found.get("number")) is int else None
