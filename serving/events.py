"""What the watcher saw and did: a line in the event log for each, and counters for /metrics.

``logs/events.jsonl`` has one JSON object a line. ``watch.prom`` holds the counters in Prometheus'
text format; whoever serves metrics may append it as it is.
"""

import collections
import json
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from modelspec.layout import atomic_write

COUNTER = "tidegate_watch_events_total"
HEARTBEAT = "tidegate_watch_heartbeat_timestamp_seconds"
BEAT_S = 5.0
LOG_LIMIT_BYTES = 8 * 1024 * 1024


class Events:
    """Events of one watcher; ``work_dir`` is .tidegate."""

    def __init__(self, work_dir: Path) -> None:
        self._log = work_dir / "logs" / "events.jsonl"
        self._metrics = work_dir / "watch.prom"
        self.counts: collections.Counter[tuple[str, str]] = collections.Counter()
        self._beaten = 0.0  # seconds since 1970
        self._writing = threading.Lock()  # the pulse has a thread of its own

    def beat(self) -> None:
        """The watcher lives: its heartbeat, written every ``BEAT_S`` seconds."""
        now = time.time()
        if now - self._beaten >= BEAT_S:
            with self._writing:
                self._beaten = now
                atomic_write(self._metrics, self.render())

    def add(self, event: str, model: str, detail: str = "") -> None:
        """Log and count it. An event is a word such as "healed"; model may be ''."""
        with self._writing:
            self._add(event, model, detail)

    def _add(self, event: str, model: str, detail: str) -> None:
        self.counts[event, model] += 1
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event}
        self._log.parent.mkdir(parents=True, exist_ok=True)
        if self._log.is_file() and self._log.stat().st_size > LOG_LIMIT_BYTES:
            self._log.replace(self._log.with_suffix(".jsonl.1"))
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "model": model, "detail": detail}) + "\n")
        atomic_write(self._metrics, self.render())

    def render(self) -> str:
        """The counters as Prometheus reads them."""
        head = (
            f"# HELP {COUNTER} What the watcher of Triton saw and did.\n# TYPE {COUNTER} counter\n"
        )
        beat = (
            f"# HELP {HEARTBEAT} When the watcher of Triton last began a round.\n"
            f"# TYPE {HEARTBEAT} gauge\n{HEARTBEAT} {self._beaten:.3f}\n"
        )
        counted = "".join(
            f'{COUNTER}{{event="{event}",model="{model}"}} {count}\n'
            for (event, model), count in sorted(self.counts.items())
        )
        return head + counted + beat
