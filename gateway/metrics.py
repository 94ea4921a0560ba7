"""Counters for the operator. Labels are routes, models and codes that exist: never what a client
made up, never a key or a principal."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import prometheus_client as prometheus
from prometheus_client import multiprocess

from gateway.http.request_context import RequestContext

if TYPE_CHECKING:
    from gateway.models.catalogue import Catalogue
    from gateway.upstream.replicas import Replica

# Where several workers put their numbers together; the client library reads it at its import.
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
CHILDREN = 10_000  # time series of one worker; beyond that everything new is 'other'


_Child = tuple[prometheus.Counter, prometheus.Histogram]


class Metrics:
    """What one worker counts, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        labels = ("action", "model", "status")
        self._requests = prometheus.Counter(
            "tidegate_requests", "Requests answered.", labels, registry=self.registry
        )
        self._seconds = prometheus.Histogram(
            "tidegate_request_seconds",
            "From the first byte of the request to the end of its answer.",
            ("action", "model"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._restarts = prometheus.Counter(
            "tidegate_background_restarts",
            "Background tasks that had ended or stalled, and were started again.",
            ("task",),
            registry=self.registry,
        )
        self._audit = prometheus.Counter(
            "tidegate_audit_trouble",
            "Audit: attempts to write that failed, decisions lost or suppressed.",
            ("what",),
            registry=self.registry,
        )
        # Of several workers: healthy where all say so; each has its own share of the work.
        self._healthy = prometheus.Gauge(
            "tidegate_replica_healthy",
            "1 while the replica is asked, else 0.",
            ("replica",),
            registry=self.registry,
            multiprocess_mode="livemin",
        )
        self._inflight = prometheus.Gauge(
            "tidegate_replica_inflight",
            "Requests under way to the replica.",
            ("replica",),
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self._places: set[str] = set()
        self._children: dict[tuple[str, str, int], _Child] = {}

    def restarted(self, task: str) -> None:
        self._restarts.labels(task).inc()

    def audit_trouble(self, what: str, count: int) -> None:
        """``what`` is failed, lost or suppressed. May be called by any thread."""
        self._audit.labels(what).inc(count)

    def record(self, context: RequestContext, status: int, catalogue: "Catalogue") -> None:
        """Count one request; a model that is not served is counted as 'unknown'."""
        model = context.model
        if model and model not in catalogue.models:
            model = "unknown"
        requests, seconds = self._child(context.action or "none", model, status)
        requests.inc()
        seconds.observe(time.perf_counter() - context.started)

    def show_replicas(self, replicas: "Sequence[Replica]") -> None:
        """Take over how the replicas are now; one that is listed no more is shown no more."""
        addresses = {replica.place for replica in replicas}
        for place in self._places - addresses:
            for gauge in (self._healthy, self._inflight):
                if SHARED_FOLDER in os.environ:
                    gauge.labels(place).set(0)  # the shared files have no way to take one out
                else:
                    gauge.remove(place)
        self._places = addresses
        for replica in replicas:
            self._healthy.labels(replica.place).set(not replica.reason)
            self._inflight.labels(replica.place).set(replica.inflight)

    def page(self, watched: Path) -> bytes:
        """The text that Prometheus reads: of all workers, where they share a folder, and then what
        the stack's watcher wrote into ``watched``."""
        registry = self.registry
        if SHARED_FOLDER in os.environ:
            registry = prometheus.CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        more = watched.read_bytes() if watched.is_file() else b""
        return prometheus.generate_latest(registry) + more

    def _child(self, action: str, model: str, status: int) -> _Child:
        key = (action, model, status)
        found = self._children.get(key)
        if found is None:
            if len(self._children) >= CHILDREN:
                action = model = "other"
            found = (
                self._requests.labels(action, model, str(status)),
                self._seconds.labels(action, model),
            )
            self._children[key] = found
        return found
