"""The audit log: append-only JSON lines, each with the SHA-256 of the previous line.

Each worker passes its decisions to a thread of its own; the threads share one chain and take turns
(flock on ``audit.lock``). A turn appends a batch, syncs it to the disk, then writes ``audit.head``:
the end of the chain, signed with the pepper, so that a truncated tail is noticed. A decision is on
the disk about ``FLUSH_S`` after it was made; no more than that is lost if the machine dies. Only
the fields of ``Decision`` are written: never a header, never a body.

Nothing in a decision can stop the thread, and no failure ends it: what could not be written is
retried, and what does not fit into memory meanwhile is counted as lost. Refusals of callers without
an identity have a small budget of their own (``STRANGERS_BURST``, then ``STRANGERS_PER_S``); those
beyond it are counted, and one line every ``SUPPRESSED_S`` gives their number.

On a new day (UTC), or above ``FILE_LIMIT_BYTES``, the file is renamed ``audit.<number of its first
line>.log`` and the chain continues in a new one.
"""

import contextlib
import errno
import hashlib
import hmac
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import orjson

from gateway.http.request_context import RequestContext
from modelspec.files import lock, write_private

log = logging.getLogger("gateway")
FLUSH_S, RETRY_S = 0.1, 5.0
FILE_LIMIT_BYTES = 256 * 1024 * 1024
MAX_WAITING = 100_000  # decisions; those beyond are counted, and their number is written
FIELD_LIMIT = 300  # characters
STRANGERS_BURST, STRANGERS_PER_S = 50.0, 1.0
SUPPRESSED_S = 10.0
STALL_S = 15.0  # after this long without a round, the disk does not respond
# Characters that JSON does not escape, and that some readers take for a line end, some terminals
# for a command.
_CONTROLS = {code: f"\\u{code:04x}" for code in (*range(0x80, 0xA0), 0x2028, 0x2029)}
FIRST = "0" * 64  # the first line's hash of the line before it
LOG, HEAD, LOCK = "audit.log", "audit.head", "audit.lock"
NEW_CHAIN = "look into it, then move audit.* away to start a new chain"
CHAIN = "chain"  # the action of a line which says that the lines up to ``status`` were lost
Waiting = list[tuple[float, "Decision"]]


class AuditError(ValueError):
    """The log on the disk is not as the gateway wrote it; the message says what to do."""


class Decision(NamedTuple):
    """One line, without its number, its time and the hash."""

    request_id: str
    principal: str
    tenant: str
    action: str
    model: str
    # 'allow' or 'deny'; 'lost' or 'suppressed' if ``status`` decisions were not written, because
    # that was impossible, or because they were strangers' and too many
    decision: str
    status: int


@dataclass(frozen=True)
class Head:
    """The chain's last line; the first line of the current file, and that file's size in bytes."""

    number: int = 0
    hash: str = FIRST
    first: int = 1
    size: int = 0


def read_head(folder: Path, pepper: bytes) -> Head:
    """The head that was signed last; a new one if nothing has been written yet. Raises AuditError
    if it was not signed with this pepper."""
    try:
        fields = orjson.loads((folder / HEAD).read_bytes())
        signature = fields.pop("mac")
    except FileNotFoundError:
        if (folder / LOG).exists():
            raise AuditError(f"audit.head is missing: {NEW_CHAIN}") from None
        return Head()
    except (ValueError, LookupError, TypeError, AttributeError):
        signature = fields = ""
    if not isinstance(signature, str) or not hmac.compare_digest(signature, _mac(fields, pepper)):
        raise AuditError(f"audit.head was not signed with this pepper: {NEW_CHAIN}")
    return Head(**fields)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One writer or reader at a time. On a read-only file system there is no writer."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context((folder / LOCK).open("a"))
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
        else:
            lock(file, wait_s=None)
        yield


class AuditLog:
    """``record`` costs the event loop an append to a queue; ``close`` writes what is queued.

    ``count`` is called with problems: ("failed", 1) for a failed attempt to write, ("lost", n) and
    ("suppressed", n) for decisions that have no line.
    """

    def __init__(
        self,
        folder: Path,
        pepper_file: Path,
        count: Callable[[str, int], None] = lambda what, number: None,
    ) -> None:
        self._folder, self._pepper_file, self._count = folder, pepper_file, count
        self._queue: queue.SimpleQueue[tuple[float, Decision]] = queue.SimpleQueue()
        # In each pair the first is written only by the event loop, the second only by the thread.
        self._lost = self._lost_written = 0
        self._suppressed = self._suppressed_written = 0
        self._suppressed_at = float("-inf")  # when the last line about suppressed ones was written
        self._budget, self._budget_at = STRANGERS_BURST, time.monotonic()
        self._waiting: Waiting = []
        self._head = Head()
        self._failure = ""
        self._last_round = time.monotonic()
        self._closing = threading.Event()
        self._thread = self._new_thread()

    def start(self) -> None:
        with contextlib.suppress(OSError):  # the thread retries, and reports the error
            self._folder.mkdir(parents=True, exist_ok=True)
        self._last_round = time.monotonic()
        self._thread.start()

    def fault(self) -> str:
        """'' while decisions reach the disk, else why they do not."""
        silent_s = time.monotonic() - self._last_round
        if not self._thread.is_alive() and not self._closing.is_set():
            return "its thread has ended"
        if silent_s > STALL_S and not self._closing.is_set():
            return f"has been waiting for the disk for {silent_s:.0f} s"
        return self._failure

    def revive(self) -> bool:
        """Start a new thread if the previous one has ended; it continues with what is queued."""
        if self._thread.is_alive() or self._closing.is_set():
            return False
        self._thread = self._new_thread()
        self.start()
        return True

    def note(self, context: RequestContext, status: int, policy: str) -> None:
        """Record the decision about this request if the policy ('all', 'denied' or 'off') asks for
        it."""
        denied, principal = status in (401, 403, 404, 429), context.principal
        if policy == "off" or (policy == "denied" and not denied and context.action != "admin"):
            return
        if principal is None and not self._take_from_budget():
            self._suppressed += 1
            return
        self.record(
            Decision(
                context.request_id,
                principal.id if principal else "",
                principal.tenant if principal else "",
                context.action,
                context.model,
                "deny" if denied else "allow",
                status,
            )
        )

    def record(self, decision: Decision) -> None:
        if self._queue.qsize() < MAX_WAITING:
            self._queue.put((time.time(), decision))
        else:
            self._lost += 1

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _take_from_budget(self) -> bool:
        now = time.monotonic()
        gained = (now - self._budget_at) * STRANGERS_PER_S
        self._budget, self._budget_at = min(STRANGERS_BURST, self._budget + gained), now
        # While the disk takes nothing, strangers leave half of the queue to known callers.
        if self._budget < 1 or self._queue.qsize() > MAX_WAITING // 2:
            return False
        self._budget -= 1
        return True

    def _new_thread(self) -> threading.Thread:
        return threading.Thread(target=self._run, name="audit", daemon=True)

    def _run(self) -> None:
        last = False
        while not last:
            last = self._closing.wait(FLUSH_S)
            try:
                self._round(last)
            except BaseException as error:  # whatever it is, later decisions must be written
                self._handle_failure(error)
            self._last_round = time.monotonic()

    def _round(self, last: bool) -> None:
        if len(self._waiting) < MAX_WAITING:
            self._waiting += self._take(last)
        if not self._waiting:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        pepper = self._pepper_file.read_bytes() if self._pepper_file.exists() else b""
        with locked(self._folder):
            self._head = append(self._folder, pepper, self._waiting, self._head)
        self._waiting = []
        self._failure = ""

    def _handle_failure(self, error: BaseException) -> None:
        log.error(
            "the audit log cannot be written, trying again: %s", error or type(error).__name__
        )
        self._failure = f"cannot be written: {error or type(error).__name__}"
        self._count("failed", 1)
        self._last_round = time.monotonic()
        self._closing.wait(RETRY_S)

    def _take(self, last: bool) -> Waiting:
        taken = [self._queue.get() for _ in range(self._queue.qsize())]
        now = time.time()
        lost = self._lost - self._lost_written
        if lost:
            self._lost_written += lost
            self._count("lost", lost)
            taken.append((now, _count_line("lost", lost)))
        suppressed = self._suppressed - self._suppressed_written
        if suppressed and (last or time.monotonic() - self._suppressed_at > SUPPRESSED_S):
            self._suppressed_written += suppressed
            self._suppressed_at = time.monotonic()
            self._count("suppressed", suppressed)
            taken.append((now, _count_line("suppressed", suppressed)))
        return taken


def _count_line(decision: str, number: int) -> Decision:
    return Decision("", "", "", "", "", decision, number)


def append(folder: Path, pepper: bytes, batch: Waiting, known: Head | None = None) -> Head:
    """Continue the chain; call it under ``locked``. ``known`` is the head that this process wrote
    last: if all files have been removed since, the numbers continue from there, and a line says
    that the log was lost. So does one if an older state of the log was put in its place."""
    path = folder / LOG
    head = read_head(folder, pepper)
    if known and head.number < known.number:
        batch = [(time.time(), Decision("", "", "", CHAIN, "", "lost", known.number)), *batch]
        if not head.number:
            head = replace(known, first=known.number + 1, size=0)
    head = _rotate(path, head)
    if not (folder / HEAD).exists():
        # Before the log is there: a log without a head means that somebody took the head away.
        _write_head(folder, head, pepper)
    size = path.stat().st_size if path.exists() else 0
    lines = bytearray(b"\n" if size < head.size else b"")  # after a cut: start a new line
    number, before = head.number, head.hash
    for timestamp, decision in batch:
        number += 1
        line = _line(number, timestamp, decision, before)
        before = hashlib.sha256(line).hexdigest()
        lines += line + b"\n"
    head = replace(head, number=number, hash=before)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        # Anything after the head was written by a gateway that died, or by somebody else.
        size = file.truncate(min(size, head.size))
        file.seek(size)
        file.write(lines)
        file.flush()
        os.fsync(descriptor)
    head = replace(head, size=size + len(lines))
    _write_head(folder, head, pepper)
    return head


def _write_head(folder: Path, head: Head, pepper: bytes) -> None:
    fields = asdict(head)
    write_private(folder / HEAD, orjson.dumps({**fields, "mac": _mac(fields, pepper)}))


def _rotate(path: Path, head: Head) -> Head:
    """The head, after starting a new file if it is time for one."""
    old = path.with_name(f"audit.{head.first:012d}.log")
    if path.exists() and not old.exists():
        stat = path.stat()
        if (
            stat.st_size > FILE_LIMIT_BYTES
            or _timestamp(stat.st_mtime)[:10] != _timestamp(time.time())[:10]
        ):
            path.rename(old)
    if old.exists():  # renamed just now, or by a gateway that died before it wrote the head
        return replace(head, first=head.number + 1, size=0)
    return head


def _line(number: int, timestamp: float, decision: Decision, before: str) -> bytes:
    """One line, without its end; ``before`` is the hash of the line before it."""
    try:
        values = [*map(json_value, decision)]
    except Exception:  # one decision that cannot be written must not hold up the others
        values = [*_count_line("lost", 1)]
    document = {"number": number, "time": _timestamp(timestamp)}
    document.update(zip(Decision._fields, values, strict=True))
    document["before"] = before
    return orjson.dumps(document)


def json_value(value: object) -> str | int:
    """For a line of a log, the value as JSON can represent it: anything but integers and valid
    Unicode is escaped."""
    if type(value) is str and len(value) <= FIELD_LIMIT and value.isascii():
        return value
    if isinstance(value, int) and abs(value) < 2**53:
        return int(value)
    text = value if isinstance(value, str) else ascii(value)
    escaped = text[:FIELD_LIMIT].encode("utf-8", "backslashreplace").decode()
    return escaped.translate(_CONTROLS)


def _mac(fields: object, pepper: bytes) -> str:
    return hmac.digest(pepper, orjson.dumps(fields), "sha256").hex()


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
