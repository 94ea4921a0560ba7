"""Metrics for the operator (docs/metrics.md). Labels are APIs, models and codes that exist: never a
client's own text, never a key or a principal.

What OpenTelemetry's conventions for generative AI have a name for has that name, in Prometheus'
spelling, with their buckets.
"""

import array
import contextlib
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import prometheus_client as prometheus
from prometheus_client import multiprocess
from prometheus_client.registry import Collector

from gateway.http.request_context import RequestContext
from gateway.upstream.balancing import Health
from modelspec.files import lock

if TYPE_CHECKING:
    from gateway.models.catalogue import Catalogue
    from gateway.upstream.admission import TurnQueue
    from gateway.upstream.replicas import Replica

# The folder through which workers share their metrics; the client library reads it on import.
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
PREFIX, LOCK = "tidegate-metrics-", "lock"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
# The buckets that the conventions ask for: seconds, and tokens.
GEN_AI_REQUEST_SECONDS = tuple(0.01 * 2**power for power in range(14))
GEN_AI_FIRST_TOKEN_SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1),
    *(0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
GEN_AI_TOKEN_SECONDS = (*(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),)
GEN_AI_TOKENS = tuple(4**power for power in range(14))
GEN_AI_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
GEN_AI_LABELS = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
PROVIDER = "tidegate"
CHILDREN = 10_000  # kinds of requests of one worker; new ones beyond that are counted as 'other'
LABEL_VALUES = 1_000  # models that have time series of their own; the rest are 'other'
LATEST = 500  # requests to a model whose durations its latency is computed from
OTHER = "other"
TALLIED = 1024  # observations are passed on to a histogram at the latest when there are so many
FEWEST = 20  # fewer say nothing of a percentile


ShadowResult = Literal["agrees", "differs", "failed", "dropped"]

# Otherwise each counter and histogram has a time series with the time of its first event.
prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]


class _Histogram(prometheus.Histogram):
    def add(self, counts: Sequence[int], total: float) -> None:
        """Count what was observed elsewhere: how many in each bucket, and the sum of them all."""
        self._sum.inc(total)
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)


class _Tally:
    """Observations that are passed on to a histogram together, when the registry is read: the
    histogram itself takes two locks for each. Both happen on the event loop."""

    __slots__ = ("_histogram", "_values")

    def __init__(self, histogram: _Histogram) -> None:
        self._histogram = histogram
        self._values = array.array("d")

    def observe(self, value: float) -> None:
        self._values.append(value)
        if len(self._values) == TALLIED:
            self.flush()

    def flush(self) -> None:
        values = np.array(self._values)
        del self._values[:]
        buckets = np.searchsorted(SECONDS, values)
        counts = np.bincount(buckets, minlength=len(SECONDS) + 1)
        self._histogram.add(counts.tolist(), float(values.sum()))


class _Child(NamedTuple):
    """The time series of one kind of request."""

    requests: prometheus.Counter
    seconds: _Histogram | _Tally
    queue: _Histogram | _Tally
    upstream: _Histogram | _Tally


class _GenAiChild(NamedTuple):
    duration: prometheus.Histogram
    first_token: prometheus.Histogram
    each_token: prometheus.Histogram
    input_tokens: prometheus.Histogram
    output_tokens: prometheus.Histogram


@dataclass
class _Answered:
    """How long the latest requests took that these versions of a model answered, in seconds."""

    versions: tuple[str, ...]
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=LATEST))


class Metrics:
    """One worker's metrics, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        self._tallies: list[_Tally] = []
        self.registry.register(_Tallies(self._tallies))  # the first: it is asked before all others
        labels = ("action", "model", "status")
        self._requests = prometheus.Counter(
            "tidegate_requests", "Requests answered.", labels, registry=self.registry
        )
        self._seconds = self._histogram(
            "tidegate_request_seconds",
            "From the first byte of the request to the end of its response.",
            ("api", "model", "status"),
        )
        self._queue = self._histogram(
            "tidegate_queue_seconds",
            "From the first byte of the request until it was sent to a replica.",
            ("api", "model"),
        )
        self._upstream = self._histogram(
            "tidegate_upstream_seconds", "At the replica, network included.", ("api", "model")
        )
        self._gen_ai_duration = self._histogram(
            "gen_ai_server_request_duration_seconds",
            "To the last byte or token of the response.",
            (*GEN_AI_LABELS, "error_type"),
            GEN_AI_REQUEST_SECONDS,
        )
        self._gen_ai_first_token = self._histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "To the first token of successful responses.",
            GEN_AI_LABELS,
            GEN_AI_FIRST_TOKEN_SECONDS,
        )
        self._gen_ai_each_token = self._histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "For each token after the first, in successful responses.",
            GEN_AI_LABELS,
            GEN_AI_TOKEN_SECONDS,
        )
        self._gen_ai_tokens = self._histogram(
            "gen_ai_client_token_usage",
            "Tokens of a request, as the model counts them.",
            (*GEN_AI_LABELS, "gen_ai_token_type"),
            GEN_AI_TOKENS,
        )
        self._canary = self._histogram(
            "tidegate_canary_seconds",
            "Requests that a canary or the pipeline beside it answered.",
            ("canary", "beside", "weight", "arm", "status"),
        )
        self._cached = prometheus.Counter(
            "tidegate_cache_requests",
            "Requests to deterministic models, by what the response cache did.",
            ("model", "result"),
            registry=self.registry,
        )
        self._cache_evictions = prometheus.Counter(
            "tidegate_cache_evictions",
            "Responses that were dropped from memory to make room for others.",
            registry=self.registry,
        )
        self._cache_bytes = prometheus.Gauge(
            "tidegate_cache_bytes",
            "Memory of the responses that are kept.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self._shadowed = prometheus.Counter(
            "tidegate_shadow_requests",
            "Requests that were drawn for a shadow, by what came of it.",
            ("model", "shadow", "result"),
            registry=self.registry,
        )
        self._shadow_seconds = self._histogram(
            "tidegate_shadow_seconds",
            "At the replica: requests that a shadow answered too.",
            ("model", "shadow", "arm"),
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
        self._fallbacks = prometheus.Counter(
            "tidegate_fallbacks",
            "Requests that were sent to the fallback of their pipeline.",
            ("model", "fallback"),
            registry=self.registry,
        )
        self._circuits_opened = prometheus.Counter(
            "tidegate_circuits_opened",
            "How often a pipeline began to refuse a caller's requests: every replica failed most.",
            ("model",),
            registry=self.registry,
        )
        # With several workers: healthy if all say so; requests in flight are summed.
        self._healthy = prometheus.Gauge(
            "tidegate_replica_healthy",
            "1 while the replica is up, else 0.",
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
        self._tokens_under_way = prometheus.Gauge(
            "tidegate_replica_tokens",
            "About how many tokens the texts take that language models continue at the replica.",
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
        self._drained = prometheus.Gauge(
            "tidegate_replica_drained",
            "1 while the replica is drained by an operator, nothing is under way there, and others "
            "take its requests, else 0.",
            ("replica",),
            registry=self.registry,
            multiprocess_mode="livemin",
        )
        self._waiting = prometheus.Gauge(
            "tidegate_model_waiting_requests",
            "Requests that wait in the gateway for their turn at the model.",
            ("model",),
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self._limit = prometheus.Gauge(
            "tidegate_model_request_limit",
            "How many requests for the model are sent to Triton at a time.",
            ("model",),
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self._addresses: set[str] = set()
        self._children: dict[tuple[str, str, str, int], _Child] = {}
        self._gen_ai_children: dict[tuple[str, str, int], _GenAiChild] = {}
        self._models: set[str] = set()  # those that have time series of their own
        self._canaries: set[tuple[str, str, str]] = set()
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
        child = self._child(context.action or "none", context.api, model, status)
        child.requests.inc()
        duration = time.perf_counter() - context.started
        child.seconds.observe(duration)
        if context.sent_at:
            child.queue.observe(context.sent_at - context.started)
            child.upstream.observe(context.upstream_s)
            for canary, weight in context.canaries.items():
                if context.pipeline in (canary, model):
                    arm = "canary" if context.pipeline == canary else "stable"
                    labels = self._canary_labels(canary, context.beside, weight)
                    self._canary.labels(*labels, arm, f"{status // 100}xx").observe(duration)
        if context.cache:
            self._cached.labels(self._label(model), context.cache).inc()
        if context.fallback:
            self._fallbacks.labels(self._label(model), self._label(context.fallback)).inc()
        operation = GEN_AI_OPERATIONS.get(context.route)
        if operation:
            self._record_gen_ai(context, operation, model, status, duration)
        # What the cache or a fallback answered says nothing of the model's own latency.
        is_own = not context.fallback and bool(context.sent_at or not context.cache)
        if context.action == "infer" and is_own and status < 400 and model in catalogue.models:
            versions = catalogue.models[model].versions
            latest = self._answered.get(model)
            if latest is None or latest.versions != versions:
                latest = self._answered[model] = _Answered(versions)
            latest.durations.append(duration)

    def _record_gen_ai(
        self, context: RequestContext, operation: str, model: str, status: int, duration: float
    ) -> None:
        child = self._gen_ai_child(operation, model, status)
        child.duration.observe(duration)
        tokens = context.tokens
        inputs = tokens.input_tokens if tokens else None
        outputs = tokens.output_tokens if tokens else None
        if inputs is not None:
            child.input_tokens.observe(inputs)
        if outputs is not None:
            child.output_tokens.observe(outputs)
        if status >= 400 or not context.first_response_at:
            return
        child.first_token.observe(context.first_response_at - context.started)
        if outputs is not None and outputs > 1:
            ended_at = context.sent_at + context.upstream_s
            each_s = (ended_at - context.first_response_at) / (outputs - 1)
            child.each_token.observe(max(0.0, each_s))

    def latest_durations(self, model: str, versions: tuple[str, ...]) -> list[float]:
        """Of the latest requests that this worker had answered by these versions, in seconds,
        sorted; [] for fewer than ``FEWEST``."""
        latest = self._answered.get(model)
        if not latest or latest.versions != versions or len(latest.durations) < FEWEST:
            return []
        return sorted(latest.durations)

    def show_replicas(
        self, replicas: "Sequence[Replica]", drained: "Collection[Replica]" = ()
    ) -> None:
        """Set the gauges to the replicas' current state, and drop those of removed replicas.
        ``drained`` are those that could be stopped now."""
        addresses = {replica.address for replica in replicas}
        # Entries cannot be removed from the shared files: ``page`` leaves them out, and where
        # another worker still lists the replica, these values do not change what the workers say.
        silent = dict.fromkeys((self._inflight, self._tokens_under_way, self._ejected), 0)
        silent |= dict.fromkeys((self._healthy, self._drained), 1)
        for address in self._addresses - addresses:
            for gauge, value in silent.items():
                if SHARED_FOLDER in os.environ:
                    gauge.labels(address).set(value)
                else:
                    gauge.remove(address)
        self._addresses = addresses
        for replica in replicas:
            self._healthy.labels(replica.address).set(replica.health is Health.UP)
            self._drained.labels(replica.address).set(replica in drained)
            self._inflight.labels(replica.address).set(replica.inflight)
            self._tokens_under_way.labels(replica.address).set(replica.tokens)
            self._ejected.labels(replica.address).set(len(replica.ejected()))

    def shadowed(self, model: str, shadow: str, result: ShadowResult) -> None:
        """Count a request that was drawn for the shadow of a model."""
        self._shadowed.labels(self._label(model), self._label(shadow), result).inc()

    def shadow_took(self, model: str, shadow: str, primary_s: float, shadow_s: float) -> None:
        """How long a request that the shadow answered took there, and at the model itself."""
        labels = self._label(model), self._label(shadow)
        self._shadow_seconds.labels(*labels, "primary").observe(primary_s)
        self._shadow_seconds.labels(*labels, "shadow").observe(shadow_s)

    def show_cache(self, used_bytes: int, evicted: int) -> None:
        """The memory that is used, and how many responses were dropped since the last call."""
        self._cache_bytes.set(used_bytes)
        self._cache_evictions.inc(evicted)

    def circuit_opened(self, model: str) -> None:
        self._circuits_opened.labels(self._label(model)).inc()

    def is_not_drained(self, replica: "Replica") -> None:
        """The replica may get requests from now on."""
        self._drained.labels(replica.address).set(0)

    def show_queues(self, queues: "Mapping[str, TurnQueue]") -> None:
        """Set the gauges of the models that were asked (of ``LABEL_VALUES`` at most)."""
        for model, queue in islice(queues.items(), LABEL_VALUES):
            self._waiting.labels(model).set(queue.waiting)
            self._limit.labels(model).set(queue.most_at_once)

    def forget_queue(self, model: str) -> None:
        for gauge in (self._waiting, self._limit):
            if SHARED_FOLDER in os.environ:
                gauge.labels(model).set(0)  # entries cannot be removed from the shared files
            else:
                with contextlib.suppress(KeyError):
                    gauge.remove(model)

    def page(self, watcher_file: Path) -> bytes:
        """The text for Prometheus: the metrics of all workers, if they share a folder, and then
        what the stack's watcher wrote into ``watcher_file``."""
        registry = self.registry
        if SHARED_FOLDER in os.environ:
            registry = prometheus.CollectorRegistry()
            registry.register(_Workers(self._addresses))
        watcher_metrics = watcher_file.read_bytes() if watcher_file.is_file() else b""
        return prometheus.generate_latest(registry) + watcher_metrics

    def _histogram(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        buckets: Sequence[float] = SECONDS,
    ) -> _Histogram:
        return _Histogram(name, documentation, labels, buckets=buckets, registry=self.registry)

    def _child(self, action: str, api: str, model: str, status: int) -> _Child:
        key = (action, api, model, status)
        child = self._children.get(key)
        if child is None:
            if len(self._children) >= CHILDREN:
                action = model = OTHER
            model = self._label(model)
            child = self._children[key] = _Child(
                self._requests.labels(action, model, str(status)),
                self._tallied(self._seconds.labels(api, model, f"{status // 100}xx")),
                self._tallied(self._queue.labels(api, model)),
                self._tallied(self._upstream.labels(api, model)),
            )
        return child

    def _tallied(self, histogram: _Histogram) -> _Histogram | _Tally:
        """What to observe in its place: itself, if other workers read what this one has written."""
        if SHARED_FOLDER in os.environ:
            return histogram
        tally = _Tally(histogram)
        self._tallies.append(tally)
        return tally

    def _gen_ai_child(self, operation: str, model: str, status: int) -> _GenAiChild:
        key = (operation, model, status)
        child = self._gen_ai_children.get(key)
        if child is None:
            labels = (operation, PROVIDER, self._label(model))
            child = self._gen_ai_children[key] = _GenAiChild(
                self._gen_ai_duration.labels(*labels, "" if status < 400 else str(status)),
                self._gen_ai_first_token.labels(*labels),
                self._gen_ai_each_token.labels(*labels),
                self._gen_ai_tokens.labels(*labels, "input"),
                self._gen_ai_tokens.labels(*labels, "output"),
            )
        return child

    def _canary_labels(self, canary: str, beside: str, weight: float) -> tuple[str, str, str]:
        """Counts of one pair of versions at one weight are comparable, and no others."""
        labels = canary, beside, f"{weight:g}"
        if labels not in self._canaries and len(self._canaries) >= LABEL_VALUES:
            return OTHER, OTHER, OTHER
        self._canaries.add(labels)
        return labels

    def _label(self, model: str) -> str:
        if model not in self._models and len(self._models) >= LABEL_VALUES:
            return OTHER
        self._models.add(model)
        return model


class _Tallies(Collector):
    """Passes on what the tallies hold, and has no metrics of its own."""

    def __init__(self, tallies: Sequence[_Tally]) -> None:
        self._tallies = tallies

    def collect(self) -> Iterator[prometheus.Metric]:
        for tally in self._tallies:
            tally.flush()
        return iter(())


class _Workers(Collector):
    """The metrics of all workers, of replicas only those that are listed now."""

    def __init__(self, addresses: Collection[str]) -> None:
        self._addresses = addresses

    def collect(self) -> Iterator[prometheus.Metric]:
        workers = multiprocess.MultiProcessCollector(None)  # type: ignore[no-untyped-call]
        for family in workers.collect():  # type: ignore[no-untyped-call]
            family.samples = [
                sample
                for sample in family.samples
                if "replica" not in sample.labels or sample.labels["replica"] in self._addresses
            ]
            yield family


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
