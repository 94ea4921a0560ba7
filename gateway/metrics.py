"""Metrics for the operator. Labels are routes, models and codes that exist: never a client's own
text, never a key or a principal."""

import contextlib
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import prometheus_client as prometheus
from prometheus_client import multiprocess

from gateway.http.request_context import RequestContext
from modelspec.files import lock

if TYPE_CHECKING:
    from gateway.models.catalogue import Catalogue
    from gateway.upstream.replicas import Replica

# The folder through which workers share their metrics; the client library reads it on import.
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
PREFIX, LOCK = "tidegate-metrics-", "lock"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
CHILDREN = 10_000  # time series of one worker; new ones beyond that are counted as 'other'
LATEST = 500  # requests to a model whose durations its latency is computed from
FEWEST = 20  # fewer say nothing of a percentile


_Child = tuple[prometheus.Counter, prometheus.Histogram]


@dataclass
class _Answered:
    """How long the latest requests took that these versions of a model answered, in seconds."""

    versions: tuple[str, ...]
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=LATEST))


class Metrics:
    """One worker's metrics, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        labels = ("action", "model", "status")
        self._requests = prometheus.Counter(
            "tidegate_requests", "Requests answered.", labels, registry=self.registry
        )
        self._seconds = prometheus.Histogram(
            "tidegate_request_seconds",
            "From the first byte of the request to the end of its response.",
            ("action", "model"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._restarts = prometheus.Counter(
            "tidegate_background_restarts",
            "Background tasks that had ended or stalled, and were restarted.",
            ("task",),
            registry=self.registry,
        )
        self._audit = prometheus.Counter(
            "tidegate_audit_trouble",
            "Audit: attempts to write that failed, decisions lost or suppressed.",
            ("what",),
            registry=self.registry,
        )
        self._dropped = prometheus.Counter(
            "tidegate_request_log_dropped",
            "Lines of the request log that were not written: the disk is full, or nobody reads.",
            registry=self.registry,
        )
        # With several workers: healthy if all say so; requests in flight are summed.
        self._healthy = prometheus.Gauge(
            "tidegate_replica_healthy",
            "1 while the replica gets requests, else 0.",
            ("replica",),
            registry=self.registry,
            multiprocess_mode="livemin",
        )
        self._inflight = prometheus.Gauge(
            "tidegate_replica_inflight",
            "Requests in flight to the replica.",
            ("replica",),
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self._ejected = prometheus.Gauge(
            "tidegate_replica_ejected_models",
            "Models whose requests the replica does not get, because it fails too many of them.",
            ("replica",),
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self._addresses: set[str] = set()
        self._children: dict[tuple[str, str, int], _Child] = {}
        self._answered: dict[str, _Answered] = {}

    def restarted(self, task: str) -> None:
        self._restarts.labels(task).inc()

    def audit_trouble(self, what: str, count: int) -> None:
        """``what`` is failed, lost or suppressed. May be called by any thread."""
        self._audit.labels(what).inc(count)

    def log_lines_dropped(self, count: int) -> None:
        """May be called by any thread."""
        self._dropped.inc(count)

    def record(self, context: RequestContext, status: int, catalogue: "Catalogue") -> None:
        """Count one request; a model that is not served is counted as 'unknown'."""
        model = context.model
        if model and model not in catalogue.models:
            model = "unknown"
        requests, seconds = self._child(context.action or "none", model, status)
        requests.inc()
        duration = time.perf_counter() - context.started
        seconds.observe(duration)
        if context.action == "infer" and status < 400 and model in catalogue.models:
            versions = catalogue.models[model].versions
            latest = self._answered.get(model)
            if latest is None or latest.versions != versions:
                latest = self._answered[model] = _Answered(versions)
            latest.durations.append(duration)

    def latest_durations(self, model: str, versions: tuple[str, ...]) -> list[float]:
        """Of the latest requests that this worker had answered by these versions, in seconds,
        sorted; [] for fewer than ``FEWEST``."""
        latest = self._answered.get(model)
        if not latest or latest.versions != versions or len(latest.durations) < FEWEST:
            return []
        return sorted(latest.durations)

    def show_replicas(self, replicas: "Sequence[Replica]") -> None:
        """Set the gauges to the replicas' current state, and drop those of removed replicas."""
        addresses = {replica.address for replica in replicas}
        for address in self._addresses - addresses:
            for gauge in (self._healthy, self._inflight, self._ejected):
                if SHARED_FOLDER in os.environ:
                    gauge.labels(address).set(0)  # entries cannot be removed from the shared files
                else:
                    gauge.remove(address)
        self._addresses = addresses
        for replica in replicas:
            self._healthy.labels(replica.address).set(not replica.reason)
            self._inflight.labels(replica.address).set(replica.inflight)
            self._ejected.labels(replica.address).set(len(replica.ejected()))

    def page(self, watcher_file: Path) -> bytes:
        """The text for Prometheus: the metrics of all workers, if they share a folder, and then
        what the stack's watcher wrote into ``watcher_file``."""
        registry = self.registry
        if SHARED_FOLDER in os.environ:
            registry = prometheus.CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        watcher_metrics = watcher_file.read_bytes() if watcher_file.is_file() else b""
        return prometheus.generate_latest(registry) + watcher_metrics

    def _child(self, action: str, model: str, status: int) -> _Child:
        key = (action, model, status)
        child = self._children.get(key)
        if child is None:
            if len(self._children) >= CHILDREN:
                action = model = "other"
            child = (
                self._requests.labels(action, model, str(status)),
                self._seconds.labels(action, model),
            )
            self._children[key] = child
        return child


@contextlib.contextmanager
def shared_folder() -> Iterator[str]:
    """A folder through which several workers share their metrics; removed when they have ended.

    Its owner holds a lock on a file in it, which ends with the process: the next gateway removes
    the folder of a killed one, and never that of a living one.
    """
    clear_left()
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name:
        hidden = Path(name) / f".{LOCK}"
        with hidden.open("w") as file:
            lock(file)
            hidden.rename(Path(name) / LOCK)  # so it is always locked under its final name
            yield name


def clear_left() -> None:
    """Remove the folders of gateways that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), (folder / LOCK).open("r+") as file:
            if lock(file):
                shutil.rmtree(folder, ignore_errors=True)
