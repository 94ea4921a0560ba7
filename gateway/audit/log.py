"""The audit log: append-only JSON lines, each with the SHA-256 of the line before.

Every worker hands its decisions to a thread of its own; the threads share one chain and take turns
(flock on ``audit.lock``). A turn appends a batch, syncs it to the disk, then writes ``audit.head``:
how far the chain goes, signed with the pepper, so that a tail that is cut off is missed. A decision
is on the disk about ``FLUSH_S`` after it was made; no more than that is lost when the machine dies.
Only the fields of ``Decision`` are written: never a header, never a body.

Nothing that a decision holds can stop the thread, and no failure ends it: what could not be written
is tried again, what does not fit into memory meanwhile is counted as lost. Refusals of callers who
showed no identity have a small budget of their own (``STRANGERS_BURST``, then ``STRANGERS_PER_S``);
the others are counted, and one line each ``SUPPRESSED_S`` says how many.

On a new day (UTC), or over ``FILE_LIMIT_BYTES``, the file is renamed ``audit.<number of its first
line>.log`` and the next one goes on with the chain.
"""

import contextlib
import errno
import fcntl
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
from typing import Any

import orjson

from gateway.http.request_context import RequestContext
from gateway.private_file import write_private

log = logging.getLogger("gateway")
FLUSH_S, RETRY_S = 0.1, 5.0
FILE_LIMIT_BYTES = 256 * 1024 * 1024
MAX_WAITING = 100_000  # decisions; those beyond are counted, and the count is written
FIELD_LIMIT = 300  # characters
STRANGERS_BURST, STRANGERS_PER_S = 50.0, 1.0
SUPPRESSED_S = 10.0
STALL_S = 15.0  # so long without a round: the disk does not answer
# What some readers of lines take for the end of one, and JSON leaves as it is.
_LINE_ENDS = {ord(each): f"\\u{ord(each):04x}" for each in "\x85\u2028\u2029"}
FIRST = "0" * 64  # what the first line says of the line before it
LOG, HEAD, LOCK = "audit.log", "audit.head", "audit.lock"
NEW_CHAIN = "look into it, then move audit.* away to begin a new chain"
CHAIN = "chain"  # the action of a line that says that the lines up to ``status`` were lost
Waiting = list[tuple[float, "Decision"]]


class AuditError(ValueError):
    """The log on the disk is not as the gateway left it; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One line, but for its number, its time and the hash."""

    request_id: str
    principal: str
    tenant: str
    action: str
    model: str
    # 'allow' or 'deny'; 'lost' or 'suppressed': as many as ``status`` were not written, because
    # that was impossible, or because they were a stranger's and too many
    decision: str
    status: int


@dataclass(frozen=True)
class Head:
    """The last line; the first line of the file being written, and that file's bytes."""

    number: int = 0
    hash: str = FIRST
    first: int = 1
    size: int = 0


def read_head(folder: Path, pepper: bytes) -> Head:
    """What was signed last; a new head if nothing was written yet. AuditError if it is not ours."""
    try:
        fields = orjson.loads((folder / HEAD).read_bytes())
        signed = fields.pop("mac")
    except FileNotFoundError:
        if (folder / LOG).exists():
            raise AuditError(f"audit.head is missing: {NEW_CHAIN}") from None
        return Head()
    except (ValueError, LookupError, TypeError, AttributeError):
        signed = fields = ""
    if not isinstance(signed, str) or not hmac.compare_digest(signed, _mac(fields, pepper)):
        raise AuditError(f"audit.head was not signed with this pepper: {NEW_CHAIN}")
    return Head(**fields)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One writer or reader at a time. Where nothing may be written there is no writer."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context((folder / LOCK).open("a"))
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
        else:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class AuditLog:
    """``record`` costs the event loop an append to a queue; ``close`` writes what waits.

    ``count`` is told of trouble: ("failed", 1) for an attempt to write that failed, ("lost", n) and
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
        # Each has one writer: the loop, the thread.
        self._lost = self._lost_written = 0
        self._suppressed = self._suppressed_written = 0
        self._told_at = float("-inf")  # when a line last said how many were suppressed
        self._budget, self._budget_at = STRANGERS_BURST, time.monotonic()
        self._waiting: Waiting = []
        self._head = Head()
        self._failure = ""
        self._beat = time.monotonic()
        self._closing = threading.Event()
        self._thread = self._new_thread()

    def start(self) -> None:
        with contextlib.suppress(OSError):  # the thread tries again, and says why not
            self._folder.mkdir(parents=True, exist_ok=True)
        self._beat = time.monotonic()
        self._thread.start()

    def fault(self) -> str:
        """'' while decisions get to the disk, else why they do not."""
        silent_s = time.monotonic() - self._beat
        if not self._thread.is_alive() and not self._closing.is_set():
            return "its thread has ended"
        if silent_s > STALL_S and not self._closing.is_set():
            return f"has not come back from the disk for {silent_s:.0f} s"
        return self._failure

    def revive(self) -> bool:
        """Begin a new thread if the one before has ended; it goes on with what waits."""
        if self._thread.is_alive() or self._closing.is_set():
            return False
        self._thread = self._new_thread()
        self.start()
        return True

    def note(self, context: RequestContext, status: int, wanted: str) -> None:
        """Record what was decided of this request, if the policy wants it recorded."""
        denied, principal = status in (401, 403, 404, 429), context.principal
        if wanted == "off" or (wanted == "denied" and not denied and context.action != "admin"):
            return
        if principal is None and not self._has_budget():
            self._suppressed += 1
            return
        name, tenant = (principal.id, principal.tenant) if principal else ("", "")
        what = "deny" if denied else "allow"
        action, model = context.action, context.model
        self.record(Decision(context.request_id, name, tenant, action, model, what, status))

    def record(self, decision: Decision) -> None:
        if self._queue.qsize() < MAX_WAITING:
            self._queue.put((time.time(), decision))
        else:
            self._lost += 1

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _has_budget(self) -> bool:
        now = time.monotonic()
        back = (now - self._budget_at) * STRANGERS_PER_S
        self._budget, self._budget_at = min(STRANGERS_BURST, self._budget + back), now
        # While the disk does not take them, they leave the queue to the others.
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
            except BaseException as error:  # whatever it is, the next decisions must be written
                self._has_failed(error)
            self._beat = time.monotonic()

    def _round(self, last: bool) -> None:
        if len(self._waiting) < MAX_WAITING:
            self._waiting += self._taken(last)
        if not self._waiting:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        pepper = self._pepper_file.read_bytes() if self._pepper_file.exists() else b""
        with locked(self._folder):
            self._head = append(self._folder, pepper, self._waiting, self._head)
        self._waiting = []
        self._failure = ""

    def _has_failed(self, error: BaseException) -> None:
        log.error("the audit log is not written, trying again: %s", error or type(error).__name__)
        self._failure = f"is not written: {error or type(error).__name__}"
        self._count("failed", 1)
        self._beat = time.monotonic()
        self._closing.wait(RETRY_S)

    def _taken(self, last: bool) -> Waiting:
        taken = [self._queue.get() for _ in range(self._queue.qsize())]
        now = time.time()
        lost = self._lost - self._lost_written
        if lost:
            self._lost_written += lost
            self._count("lost", lost)
            taken.append((now, _uncounted("lost", lost)))
        suppressed = self._suppressed - self._suppressed_written
        if suppressed and (last or time.monotonic() - self._told_at > SUPPRESSED_S):
            self._suppressed_written += suppressed
            self._told_at = time.monotonic()
            self._count("suppressed", suppressed)
            taken.append((now, _uncounted("suppressed", suppressed)))
        return taken


def _uncounted(what: str, number: int) -> Decision:
    return Decision("", "", "", "", "", what, number)


def append(folder: Path, pepper: bytes, batch: Waiting, known: Head | None = None) -> Head:
    """Continue the chain; to be called under ``locked``. ``known`` is the head that this process
    wrote last: where every file has gone since, the numbers go on from there, and a line says that
    the log was lost. So does one where an older state of the log was put in its place."""
    path = folder / LOG
    head = read_head(folder, pepper)
    if known and head.number < known.number:
        batch = [(time.time(), Decision("", "", "", CHAIN, "", "lost", known.number)), *batch]
        if not head.number:
            head = replace(known, first=known.number + 1, size=0)
    head = _rotated(path, head)
    size = path.stat().st_size if path.exists() else 0
    lines = bytearray(b"\n" if size < head.size else b"")  # after a cut: begin with a whole line
    for when, decision in batch:
        head, line = _next(head, when, decision)
        lines += line
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        # What stands behind the head was written by a gateway that died, or by somebody else.
        size = file.truncate(min(size, head.size))
        file.seek(size)
        file.write(lines)
        file.flush()
        os.fsync(descriptor)
    head = replace(head, size=size + len(lines))
    fields = asdict(head)
    write_private(folder / HEAD, orjson.dumps({**fields, "mac": _mac(fields, pepper)}))
    return head


def _rotated(path: Path, head: Head) -> Head:
    """The head, after a new file was begun if it was time for one."""
    old = path.with_name(f"audit.{head.first:012d}.log")
    if path.exists() and not old.exists():
        stat = path.stat()
        if (
            stat.st_size > FILE_LIMIT_BYTES
            or _stamp(stat.st_mtime)[:10] != _stamp(time.time())[:10]
        ):
            path.rename(old)
    if old.exists():  # just now, or by a gateway that died before it wrote the head
        return replace(head, first=head.number + 1, size=0)
    return head


def _next(head: Head, when: float, decision: Decision) -> tuple[Head, bytes]:
    number = head.number + 1
    try:
        fields = {name: _written(value) for name, value in asdict(decision).items()}
    except Exception:  # one decision that cannot be written must not hold up the others
        fields = asdict(_uncounted("lost", 1))
    line = orjson.dumps({"number": number, "time": _stamp(when), **fields, "before": head.hash})
    return replace(head, number=number, hash=hashlib.sha256(line).hexdigest()), line + b"\n"


def _written(value: Any) -> str | int:
    """The value as JSON can have it: what is not text, or not whole text, is escaped."""
    if isinstance(value, int) and abs(value) < 2**53:
        return int(value)
    text = value if isinstance(value, str) else ascii(value)
    escaped = text[:FIELD_LIMIT].encode("utf-8", "backslashreplace").decode()
    return escaped.translate(_LINE_ENDS)


def _mac(fields: object, pepper: bytes) -> str:
    return hmac.digest(pepper, orjson.dumps(fields), "sha256").hex()


def _stamp(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds")
