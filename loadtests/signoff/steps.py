"""Where Triton spends the time of a pipeline's requests, step by step: from its statistics before
and after a stretch of load."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from loadtests.preflight import CannotStart, fetch
from modelspec.names import Role, role_of

_COMPUTE = ("compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True)
class Totals:
    """Of one model, since its server started: requests, and their nanoseconds."""

    requests: int = 0
    queue_ns: int = 0
    compute_ns: int = 0

    def since(self, before: "Totals") -> "Totals":
        """A server that was started again counts from 0."""
        if self.requests < before.requests:
            return self
        return Totals(
            self.requests - before.requests,
            self.queue_ns - before.queue_ns,
            self.compute_ns - before.compute_ns,
        )


@dataclass(frozen=True)
class Step:
    """The mean seconds that one request of the pipeline waits for this model, and is in it."""

    model: str
    queue_s: float
    compute_s: float


Statistics = Mapping[str, Totals]


class Steps:
    """``read`` returns the statistics by model; None if there are none to read."""

    def __init__(self, read: Callable[[], Statistics | None]) -> None:
        self._read = read
        self._before: Statistics | None = None

    def restart(self) -> None:
        """Count from now on."""
        self._before = self._read()

    def so_far(self, pipeline: str) -> tuple[Step, ...]:
        """The steps of a pipeline since ``restart``; empty without statistics."""
        after = self._read()
        if self._before is None or after is None:
            return ()
        return steps_between(pipeline, self._before, after)


def steps_between(pipeline: str, before: Statistics, after: Statistics) -> tuple[Step, ...]:
    """The models of a pipeline that did something, in the order in which a request meets them."""
    done = {
        name: totals.since(before.get(name, Totals()))
        for name, totals in after.items()
        if name == pipeline or name.startswith(f"{pipeline}_")
    }
    requests = done.get(pipeline, Totals()).requests
    if not requests:
        return ()
    members = [name for name, totals in done.items() if totals.requests and name != pipeline]
    # An ensemble does nothing itself; its own times are those of its steps once more.
    return tuple(
        Step(name, done[name].queue_ns / requests / 1e9, done[name].compute_ns / requests / 1e9)
        for name in sorted(members, key=partial(_place, pipeline)) or [pipeline]
    )


def _place(pipeline: str, model: str) -> int:
    """Of a step's model among the others: before the engine, the engine, and after it."""
    return {Role.PRE: 0, Role.POST: 2}.get(role_of(pipeline, model) or Role.ENGINE, 1)


def read_statistics(url: str, key: str) -> Statistics | None:
    """What the gateway says of the models that this key may read; None if it says nothing."""
    try:
        status, body = fetch(f"{url}/v2/models/stats", key)
        document: Any = json.loads(body) if status == 200 else None
        return totals_by_model(document["model_stats"])
    except (CannotStart, ValueError, KeyError, TypeError, AttributeError):
        return None


def totals_by_model(entries: Iterable[Mapping[str, Any]]) -> Statistics:
    """Of V2's ``model_stats``, in which each version of a model stands for itself."""
    by_model: dict[str, Totals] = {}
    for entry in entries:
        totals, more = by_model.get(entry["name"], Totals()), _totals(entry)
        by_model[entry["name"]] = Totals(
            totals.requests + more.requests,
            totals.queue_ns + more.queue_ns,
            totals.compute_ns + more.compute_ns,
        )
    return by_model


def _totals(entry: Mapping[str, Any]) -> Totals:
    """Numbers of 64 bits may be strings in JSON, and those that are 0 may be left out."""
    times = entry["inference_stats"]

    def read(name: str, key: str) -> int:
        return int(times.get(name, {}).get(key, 0))

    return Totals(
        read("success", "count"), read("queue", "ns"), sum(read(name, "ns") for name in _COMPUTE)
    )
