"""The audit log: append-only JSON lines, each with the SHA-256 of the line before.

Every worker hands its decisions to a thread of its own; the threads share one chain and take turns
(flock on ``audit.lock``). A turn appends a batch, syncs it to the disk, then writes ``audit.head``:
how far the chain goes, signed with the pepper, so that a tail that is cut off is missed. A decision
is on the disk about ``FLUSH_S`` after it was made; no more than that is lost when the machine dies.
Only the fields of ``Decision`` are written: never a header, never a body.

On a new day (UTC), or over ``FILE_LIMIT_BYTES``, the file is renamed ``audit.<number of its first
line>.log`` and the next one goes on with the chain.
"""

import contextlib
import fcntl
import hashlib
import hmac
import logging
import os
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import orjson

from gateway.addons.audit.private_file import write_private
from gateway.http.exchange import Exchange

log = logging.getLogger("gateway")
FLUSH_S, RETRY_S = 0.1, 5.0
FILE_LIMIT_BYTES = 256 * 1024 * 1024
MAX_WAITING = 100_000  # decisions; those beyond are counted, and the count is written
FIELD_LIMIT = 300  # characters
FIRST = "0" * 64  # what the first line says of the line before it
LOG, HEAD, LOCK = "audit.log", "audit.head", "audit.lock"
NEW_CHAIN = "look into it, then move audit.* away to begin a new chain"
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
    decision: str  # 'allow', 'deny', or 'lost': as many as ``status`` were not written
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
    """One writer or reader at a time."""
    with (folder / LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class AuditLog:
    """``record`` costs the event loop an append to a queue; ``close`` writes what waits."""

    def __init__(self, folder: Path, pepper_file: Path) -> None:
        self._folder, self._pepper_file = folder, pepper_file
        self._queue: queue.SimpleQueue[tuple[float, Decision]] = queue.SimpleQueue()
        self._lost = self._lost_written = 0  # each has one writer: the loop, the thread
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def note(self, exchange: Exchange, status: int, wanted: str) -> None:
        """Record what was decided of this request, if the policy wants it recorded."""
        denied, principal = status in (401, 403, 404, 429), exchange.principal
        if wanted == "off" or (wanted == "denied" and not denied and exchange.action != "admin"):
            return
        name, tenant = (principal.id, principal.tenant) if principal else ("", "")
        what = "deny" if denied else "allow"
        action, model = exchange.action, exchange.model
        self.record(Decision(exchange.request_id, name, tenant, action, model, what, status))

    def record(self, decision: Decision) -> None:
        if self._queue.qsize() < MAX_WAITING:
            self._queue.put((time.time(), decision))
        else:
            self._lost += 1

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        waiting: Waiting = []
        while True:
            last = self._closing.wait(FLUSH_S)
            if len(waiting) < MAX_WAITING:
                waiting += self._taken()
            if waiting and self._written(waiting):
                waiting = []
            if last:
                return

    def _taken(self) -> Waiting:
        taken = [self._queue.get() for _ in range(self._queue.qsize())]
        lost = self._lost - self._lost_written
        if lost:
            self._lost_written += lost
            taken.append((time.time(), Decision("", "", "", "", "", "lost", lost)))
        return taken

    def _written(self, batch: Waiting) -> bool:
        try:
            pepper = self._pepper_file.read_bytes() if self._pepper_file.exists() else b""
            with locked(self._folder):
                append(self._folder, pepper, batch)
            return True
        except (OSError, AuditError) as error:
            log.error("the audit log is not written, trying again: %s", error)
            self._closing.wait(RETRY_S)
            return False


def append(folder: Path, pepper: bytes, batch: Waiting) -> None:
    """Continue the chain; to be called under ``locked``."""
    path = folder / LOG
    head = _rotated(path, read_head(folder, pepper))
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
    fields = asdict(replace(head, size=size + len(lines)))
    write_private(folder / HEAD, orjson.dumps({**fields, "mac": _mac(fields, pepper)}))


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
    fields = {k: v[:FIELD_LIMIT] if isinstance(v, str) else v for k, v in asdict(decision).items()}
    number = head.number + 1
    line = orjson.dumps({"number": number, "time": _stamp(when), **fields, "before": head.hash})
    return replace(head, number=number, hash=hashlib.sha256(line).hexdigest()), line + b"\n"


def _mac(fields: object, pepper: bytes) -> str:
    return hmac.digest(pepper, orjson.dumps(fields), "sha256").hex()


def _stamp(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds")
