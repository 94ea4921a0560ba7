"""Measurements -> figures -> pass or fail. No Locust in here: pure arithmetic, with unit tests.

Locust rounds the times it stores (147 ms becomes 150), which could move a p99 across its limit, so
the exact ones are stored here.
"""

import json
import math
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

BUSY_CLIENT = 0.8


@dataclass(frozen=True)
class Demand:
    """What a run needs to pass: requests of each protocol, and the p99 of each route under the
    limit."""

    protocols: tuple[str, ...]
    max_p99_ms: float | None = None


@dataclass(frozen=True)
class RouteFigures:
    """One row. Percentiles cover good answers only: a quick refusal must not flatter them."""

    protocol: str
    name: str
    requests: int
    failures: int
    rps: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True)
class PartFigures:
    """How long a part of streamed responses took: ``first_token``, or ``gap``, the mean time
    between two tokens of one response."""

    part: str
    name: str
    responses: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


@dataclass
class _Route:
    good_ms: "array[float]" = field(default_factory=lambda: array("d"))
    failures: int = 0


class Record:
    """Every request of a run, with its exact time. One thread (gevent's) writes, so no lock."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._routes: dict[tuple[str, str], _Route] = {}
        self._parts: dict[tuple[str, str], _Route] = {}
        self.crashes: Counter[str] = Counter()
        self._started, self._cpu_started = time.perf_counter(), time.process_time()
        self.elapsed_s = self.cpu_s = 0.0

    def add(self, protocol: str, name: str, response_ms: float, failed: bool) -> None:
        route = self._routes.setdefault((protocol, name), _Route())
        if failed:
            route.failures += 1
        else:
            route.good_ms.append(response_ms)
        self.elapsed_s = time.perf_counter() - self._started
        self.cpu_s = time.process_time() - self._cpu_started

    def add_part(self, part: str, name: str, part_ms: float) -> None:
        """How long a part of a good response took, as its first token; it is no request."""
        self._parts.setdefault((part, name), _Route()).good_ms.append(part_ms)

    def crash(self, error: BaseException) -> None:
        """Record a user that crashed: a bug of ours, or of the environment."""
        self.crashes[f"{type(error).__name__}: {error}"] += 1

    def figures(self) -> list[RouteFigures]:
        return [self._row(*key, route) for key, route in sorted(self._routes.items())]

    def parts(self) -> list[PartFigures]:
        return [
            PartFigures(part, name, len(times), *_percentiles(sorted(times)))
            for (part, name), route in sorted(self._parts.items())
            if (times := route.good_ms)
        ]

    def _row(self, protocol: str, name: str, route: _Route) -> RouteFigures:
        ordered = sorted(route.good_ms)
        requests = len(ordered) + route.failures
        rps = requests / self.elapsed_s if self.elapsed_s else 0.0
        percentiles = _percentiles(ordered)
        return RouteFigures(protocol, name, requests, route.failures, round(rps, 2), *percentiles)

    @property
    def client_cpu(self) -> float:
        """The share of one core that Locust itself used: near 1, Locust limits the run."""
        return self.cpu_s / self.elapsed_s if self.elapsed_s else 0.0


def _percentiles(ordered: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """p50, p95 and p99."""
    return percentile(ordered, 0.50), percentile(ordered, 0.95), percentile(ordered, 0.99)


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The nearest-rank percentile, so an actual measurement; None without any."""
    if not ordered:
        return None
    return round(ordered[max(1, math.ceil(share * len(ordered))) - 1], 3)


def faults(record: Record, demand: Demand) -> list[str]:
    """Why the run fails; empty when it passes."""
    rows = record.figures()
    active = {row.protocol for row in rows}
    missing = [
        f"no {protocol} user made a request"
        for protocol in demand.protocols
        if protocol not in active
    ]
    failed = [
        f"{row.name}: {row.failures} of {row.requests} requests failed"
        for row in rows
        if row.failures
    ]
    crashed = [f"{count} x a user crashed: {error}" for error, count in record.crashes.items()]
    return [*missing, *failed, *crashed, *_too_slow(rows, demand.max_p99_ms)]


def _too_slow(rows: Sequence[RouteFigures], limit_ms: float | None) -> list[str]:
    if limit_ms is None:
        return []
    return [
        f"{row.name}: p99 {row.p99_ms:.1f} ms is over {limit_ms:g} ms"
        for row in rows
        if row.p99_ms is not None and row.p99_ms > limit_ms
    ]


def as_json(record: Record, demand: Demand) -> str:
    failures = faults(record, demand)
    document: dict[str, Any] = {
        "passed": not failures,
        "faults": failures,
        "elapsed_s": round(record.elapsed_s, 3),
        "client_cpu": round(record.client_cpu, 3),
        "max_p99_ms": demand.max_p99_ms,
        "routes": [asdict(row) for row in record.figures()],
        "parts": [asdict(row) for row in record.parts()],
    }
    return json.dumps(document, indent=2) + "\n"


def as_text(record: Record, demand: Demand) -> str:
    """The last lines of the output, for the operator."""
    rows, failures = record.figures(), faults(record, demand)
    lines = [f"FAIL: {fault}" for fault in failures]
    if not failures:
        total = sum(row.requests for row in rows)
        limit = "" if demand.max_p99_ms is None else f", p99 at most {demand.max_p99_ms:g} ms"
        lines = [f"PASS: {total} requests in {record.elapsed_s:.1f} s, no failures{limit}"]
    lines += [
        f"{row.name}: {row.part.replace('_', ' ')} p50 {row.p50_ms:.1f}, p95 {row.p95_ms:.1f}, "
        f"p99 {row.p99_ms:.1f} ms"
        for row in record.parts()
    ]
    if record.client_cpu > BUSY_CLIENT:
        lines.append(
            f"Locust itself used {record.client_cpu:.0%} of a core: it limits these figures, "
            "which include its own waiting (docs/load-testing.md)"
        )
    return "\n".join(lines) + "\n"
