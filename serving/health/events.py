"""What the watcher saw and did: one line per event in the event log, and counters for /metrics.

``logs/events.jsonl`` has one JSON object per line. ``watch.prom`` holds the counters in Prometheus'
text format; a metrics endpoint may append it unchanged.

Nothing here raises when the disk is full: an event that cannot be recorded is reported once, and
the work that it describes goes on.
"""

import collections
import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from modelspec.files import atomic_write

COUNTER = "tidegate_watch_events_total"
HEARTBEAT = "tidegate_watch_heartbeat_timestamp_seconds"
HEARTBEAT_S = 5.0
LOG_LIMIT_BYTES = 8 * 1024 * 1024
TAIL_BYTES = 64 * 1024  # some hundreds of events


def unfailing(report: Callable[[str], None]) -> Callable[[str], None]:
    """``report`` that never raises: what it writes to may be full, or closed."""

    def report_safely(line: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            report(line)

    return report_safely


@dataclass(frozen=True)
class Event:
    """A line of the event log: ``time`` is ISO 8601 in UTC; ``replica`` is '' where there is only
    one, ``model`` where it is about none."""

    time: str
    event: str
    model: str = ""
    detail: str = ""
    replica: str = ""


def last_events(work_dir: Path, since: datetime) -> list[Event]:
    """The events since then, as far as they are in the log's last ``TAIL_BYTES``, oldest first;
    none if it cannot be read."""
    events = []
    try:
        with _log_of(work_dir).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        with contextlib.suppress(ValueError, TypeError):  # cut off, at either end
            event = Event(**json.loads(line))
            if datetime.fromisoformat(event.time) >= since:
                events.append(event)
    return events


def _log_of(work_dir: Path) -> Path:
    return work_dir / "logs" / "events.jsonl"


class Events:
    """Events of the watchers of one stack; ``work_dir`` is .tidegate.

    ``report`` is called once when something cannot be recorded, and again when it can.
    """

    def __init__(self, work_dir: Path, report: Callable[[str], None] = lambda line: None) -> None:
        self._report = unfailing(report)
        self._faults: dict[str, str] = {}  # what is not recorded -> the reason
        self._log = _log_of(work_dir)
        self._metrics = work_dir / "watch.prom"
        self.counts: collections.Counter[tuple[str, str]] = collections.Counter()
        self._last_heartbeat = 0.0  # seconds since 1970
        self._next_heartbeat = 0.0  # time.monotonic: the machine's clock may be set back
        self._writing = threading.Lock()  # each pulse, and each watcher, has its own thread
        self._record("events", self._log, lambda: self._append(""))  # there to be followed

    def heartbeat(self) -> None:
        """Record that the watcher is alive, every ``HEARTBEAT_S`` seconds."""
        if time.monotonic() >= self._next_heartbeat:
            with self._writing:
                self._next_heartbeat = time.monotonic() + HEARTBEAT_S
                self._last_heartbeat = time.time()
                self._record("counters", self._metrics, self._write_metrics)

    def add(self, event: str, model: str, detail: str = "", replica: str = "") -> None:
        """Log and count an event, a word such as "healed"; ``model`` may be '', and ``replica``
        is where there is only one."""
        with self._writing:
            self.counts[event, model] += 1
            time_of_event = datetime.now(UTC).isoformat(timespec="milliseconds")
            line = {"time": time_of_event, "event": event, "model": model, "detail": detail}
            text = json.dumps({**line, "replica": replica} if replica else line) + "\n"
            self._record("events", self._log, lambda: self._append(text))
            self._record("counters", self._metrics, self._write_metrics)

    def _append(self, text: str) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        if self._log.is_file() and self._log.stat().st_size > LOG_LIMIT_BYTES:
            self._log.replace(self._log.with_suffix(".jsonl.1"))
        with self._log.open("a+b") as file:
            if file.tell() and file.seek(-1, os.SEEK_END) and file.read(1) != b"\n":
                text = "\n" + text  # the last line was truncated: the disk was full
            file.write(text.encode())

    def _write_metrics(self) -> None:
        atomic_write(self._metrics, self.render())

    def _record(self, what: str, path: Path, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            reason = error.strerror or str(error)
            if self._faults.get(what) != reason:
                self._faults[what] = reason
                self._report(
                    f"{what} are not recorded in {path} ({reason}); everything else goes on"
                )
        else:
            if self._faults.pop(what, ""):
                self._report(f"{what} are recorded in {path} again")

    def render(self) -> str:
        """The counters in Prometheus' text format."""
        head = (
            f"# HELP {COUNTER} What the watcher of Triton saw and did.\n# TYPE {COUNTER} counter\n"
        )
        heartbeat = (
            f"# HELP {HEARTBEAT} When the watcher of Triton last began a round.\n"
            f"# TYPE {HEARTBEAT} gauge\n{HEARTBEAT} {self._last_heartbeat:.3f}\n"
        )
        counters = "".join(
            f'{COUNTER}{{event="{event}",model="{_escaped(model)}"}} {count}\n'
            for (event, model), count in sorted(self.counts.items())
        )
        return head + counters + heartbeat


def _escaped(value: str) -> str:
    """Escape a label's value for Prometheus' text format: one bad line costs all metrics."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
