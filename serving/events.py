"""What the watcher saw and did: a line in the event log for each, and counters for /metrics.

``logs/events.jsonl`` has one JSON object a line. ``watch.prom`` holds the counters in Prometheus'
text format; whoever serves metrics may append it as it is.
"""

import collections
import json
from datetime import UTC, datetime
from pathlib import Path

from modelspec.layout import atomic_write

COUNTER = "tidegate_watch_events_total"
LOG_LIMIT_BYTES = 8 * 1024 * 1024


class Events:
    """Events of one watcher; ``work_dir`` is .tidegate."""

    def __init__(self, work_dir: Path) -> None:
        self._log = work_dir / "logs" / "events.jsonl"
        self._metrics = work_dir / "watch.prom"
        self.counts: collections.Counter[tuple[str, str]] = collections.Counter()

    def add(self, event: str, model: str, detail: str = "") -> None:
        """Log and count it. An event is a word such as "healed"; model may be ''."""
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
        return head + "".join(
            f'{COUNTER}{{event="{event}",model="{model}"}} {count}\n'
            for (event, model), count in sorted(self.counts.items())
        )
