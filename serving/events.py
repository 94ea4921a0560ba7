"""What the watcher saw and did: a line in the event log for each, and counters for /metrics.

``logs/events.jsonl`` has one JSON object a line. ``watch.prom`` holds the counters in Prometheus'
text format; whoever serves metrics may append it as it is.

Nothing here raises for want of a disk: what cannot be recorded is said once, and the work that it
was to record goes on.
"""

import collections
import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from modelspec.layout import atomic_write

COUNTER = "tidegate_watch_events_total"
HEARTBEAT = "tidegate_watch_heartbeat_timestamp_seconds"
BEAT_S = 5.0
LOG_LIMIT_BYTES = 8 * 1024 * 1024


def telling(tell: Callable[[str], None]) -> Callable[[str], None]:
    """``tell``, which nobody fails for: where it writes may be full, or closed."""

    def told(line: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            tell(line)

    return told


class Events:
    """Events of one watcher; ``work_dir`` is .tidegate. ``tell`` hears once what cannot be
    recorded, and that it can be again."""

    def __init__(self, work_dir: Path, tell: Callable[[str], None] = lambda line: None) -> None:
        self._tell = telling(tell)
        self._faults: dict[str, str] = {}  # what is not recorded -> why
        self._log = work_dir / "logs" / "events.jsonl"
        self._metrics = work_dir / "watch.prom"
        self.counts: collections.Counter[tuple[str, str]] = collections.Counter()
        self._beaten = 0.0  # seconds since 1970
        self._next_beat = 0.0  # time.monotonic: the machine's clock may be set back
        self._writing = threading.Lock()  # the pulse has a thread of its own

    def heartbeat(self) -> None:
        """The watcher lives: its heartbeat, written every ``BEAT_S`` seconds."""
        if time.monotonic() >= self._next_beat:
            with self._writing:
                self._next_beat = time.monotonic() + BEAT_S
                self._beaten = time.time()
                self._record("counters", self._metrics, self._write_metrics)

    def add(self, event: str, model: str, detail: str = "") -> None:
        """Log and count it. An event is a word such as "healed"; model may be ''."""
        with self._writing:
            self.counts[event, model] += 1
            line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event}
            text = json.dumps({**line, "model": model, "detail": detail}) + "\n"
            self._record("events", self._log, lambda: self._append(text))
            self._record("counters", self._metrics, self._write_metrics)

    def _append(self, text: str) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        if self._log.is_file() and self._log.stat().st_size > LOG_LIMIT_BYTES:
            self._log.replace(self._log.with_suffix(".jsonl.1"))
        with self._log.open("a+b") as file:
            if file.tell() and file.seek(-1, os.SEEK_END) and file.read(1) != b"\n":
                text = "\n" + text  # the last one was cut off: the disk was full
            file.write(text.encode())

    def _write_metrics(self) -> None:
        atomic_write(self._metrics, self.render())

    def _record(self, what: str, path: Path, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            why = error.strerror or str(error)
            if self._faults.get(what) != why:
                self._faults[what] = why
                self._tell(f"{what} are not recorded in {path} ({why}); everything else goes on")
        else:
            if self._faults.pop(what, ""):
                self._tell(f"{what} are recorded in {path} again")

    def render(self) -> str:
        """The counters as Prometheus reads them."""
        head = (
            f"# HELP {COUNTER} What the watcher of Triton saw and did.\n# TYPE {COUNTER} counter\n"
        )
        heartbeat = (
            f"# HELP {HEARTBEAT} When the watcher of Triton last began a round.\n"
            f"# TYPE {HEARTBEAT} gauge\n{HEARTBEAT} {self._beaten:.3f}\n"
        )
        counted = "".join(
            f'{COUNTER}{{event="{event}",model="{_escaped(model)}"}} {count}\n'
            for (event, model), count in sorted(self.counts.items())
        )
        return head + counted + heartbeat


def _escaped(value: str) -> str:
    """A label's value as Prometheus' text format wants it: one bad line costs all metrics."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
