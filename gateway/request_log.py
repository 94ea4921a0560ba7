"""The request log: one line of JSON per request, when its response has ended. Never the payload.

The event loop appends a tuple to a queue; a thread of its own writes them. So neither a full disk
nor a pipe that nobody reads ever holds up a request: what cannot be written, and what does not fit
into the queue meanwhile, is dropped and counted. All workers append to the same file, which is
opened for each batch of lines: it may be renamed or removed at any time.
"""

import contextlib
import fcntl
import logging
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import orjson

from gateway.audit.log import json_value
from gateway.http.request_context import LOGGED_CHARACTERS, RequestContext

log = logging.getLogger("gateway")
STDOUT = "stdout"
FLUSH_S = 0.1
MAX_WAITING = 20_000  # lines
CLOSE_S = 2.0  # for what is still queued when the gateway ends


class Line(NamedTuple):
    """What is known of one request; the times are in seconds, None for what did not happen."""

    time: float
    request_id: str
    tenant: str
    api: str
    route: str
    model: str
    pipeline: str
    version: str
    replica: str
    status: int
    total_s: float
    queue_s: float | None
    upstream_s: float
    first_token_s: float | None
    input_tokens: int | None
    output_tokens: int | None
    trace_id: str
    cache: str

    def document(self) -> bytes:
        """The line, with its end. Texts are cut and escaped: a client cannot begin a line."""
        texts = ("tenant", "api", "route", "model", "pipeline", "version", "replica")
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(self.time, UTC).isoformat(timespec="milliseconds"),
            "request_id": self.request_id,
            **{name: json_value(getattr(self, name)) for name in texts},
            "status": self.status,
            "total_ms": _ms(self.total_s),
            "queue_ms": _ms(self.queue_s),
            "upstream_ms": _ms(self.upstream_s) if self.queue_s is not None else None,
            "first_token_ms": _ms(self.first_token_s),
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "trace_id": self.trace_id,
            "cache": self.cache,
        }
        return orjson.dumps(fields) + b"\n"


def line_of(context: RequestContext, status: int) -> Line:
    tokens = context.tokens
    return Line(
        time.time(),
        context.request_id,
        context.tenant,
        context.api,
        context.route,
        context.model[:LOGGED_CHARACTERS],
        context.pipeline,
        context.version[:LOGGED_CHARACTERS],
        context.replica,
        status,
        time.perf_counter() - context.started,
        context.queue_s,
        context.upstream_s,
        context.first_response_s,
        tokens.input_tokens if tokens else None,
        tokens.output_tokens if tokens else None,
        context.trace_id,
        context.cache,
    )


class RequestLog:
    """``note`` costs the event loop an append to a queue; ``close`` writes what is queued."""

    def __init__(self, target: str, dropped: Callable[[int], None]) -> None:
        """``target`` is 'stdout' or a file; ``dropped`` is called with numbers of lines that were
        not written, by any thread."""
        self._path = None if target == STDOUT else Path(target)
        self._dropped = dropped
        self._waiting: deque[Line] = deque()
        self._failure = ""
        self._closing = threading.Event()
        # A daemon: a write that hangs must not keep the gateway from ending.
        self._thread = threading.Thread(target=self._run, name="request_log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def note(self, context: RequestContext, status: int) -> None:
        """Log a request that has ended."""
        if len(self._waiting) < MAX_WAITING:
            self._waiting.append(line_of(context, status))
        else:
            self._dropped(1)

    def close(self) -> None:
        """Return when everything is written, or after ``CLOSE_S``."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._closing.wait(FLUSH_S)
            waiting = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if not waiting:
                continue
            written = 0
            try:
                documents = [line.document() for line in waiting]
                with self._opened() as descriptor:
                    for part in _parts(descriptor, documents):
                        _append(descriptor, b"".join(part))
                        written += len(part)
                self._report("")
            except Exception as error:  # whatever it is, later lines must be written
                self._report(str(error) or type(error).__name__)
                self._dropped(len(waiting) - written)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        if self._path is None:
            yield 1
            return
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _report(self, failure: str) -> None:
        """Log once that lines are dropped, and once that they are written again."""
        if failure and failure != self._failure:
            log.error("the request log cannot be written, its lines are dropped: %s", failure)
        elif self._failure and not failure:
            log.info("the request log is written again")
        self._failure = failure


def _parts(descriptor: int, documents: Sequence[bytes]) -> Sequence[Sequence[bytes]]:
    """What is written at once: everything into a file; each line by itself into a pipe, where the
    lines of several workers do not mix as long as they are short (PIPE_BUF, 4,096 bytes)."""
    is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
    return [documents] if is_file else [[document] for document in documents]


def _append(descriptor: int, data: bytes) -> None:
    """Write all or, into a file, nothing: a full disk leaves no half of a line. Raises OSError."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        _write(descriptor, data)
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # ends when the file is closed
    size = os.fstat(descriptor).st_size
    try:
        _write(descriptor, data)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, size)
        raise
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)
