"""What has to hold, as data: ``loadtests/slo.toml``.

[text_embedding]
rate = "50/s"              # what has to be carried
headroom = 0.2             # and so much more, of that rate
p99 = "100ms"
p50 = "20ms"
errors = 0.001             # the share of requests that may fail
soak = "10m"               # how long it has to hold, at least
memory = "5MiB/min"        # the servers' memory may grow by at most so much
api = "task"               # or a mix of several: { task = 3, grpc = 1 }
arrivals = "bursty"        # or "constant"; "poisson" by default
burst = "20 every 10s"     # of bursty arrivals: the size and the period
killed_errors = 0          # the share that may fail because a replica is killed

Every number has a unit, and what is not known is refused with its place: a limit that nobody reads
is a limit that nobody holds.
"""

import difflib
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtests.signoff.arrivals import POISSON, Arrivals, burst_of
from modelspec.durations import seconds_of

_PERCENTILE = re.compile(r"p(\d{1,2}(?:\.\d{1,3})?)")
_OF = ("", "first_token", "gap")  # p99, first_token_p99, gap_p99
_RATE = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s*/\s*(s|min|h)")
_PER_S = {"s": 1.0, "min": 60.0, "h": 3600.0}
_MEMORY = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s*(KiB|MiB|GiB)/(min|h)")
_MIB = {"KiB": 1 / 1024, "MiB": 1.0, "GiB": 1024.0}
_PER_MIN = {"min": 1.0, "h": 1 / 60}
# "None may fail" cannot be shown by any number of requests, and a share below this takes days.
FEWEST_ERRORS, ERRORS = 0.0001, 0.001
# How requests are sent: the gateway's APIs, and Triton's own protocol through the gateway's port.
APIS = ("task", "v2", "v2-binary", "openai", "chat", "grpc", "grpc-stream")
STREAMS = ("chat", "grpc-stream")


class SloError(ValueError):
    """The file cannot be used: the message says where and what to write."""


@dataclass(frozen=True, order=True)
class Limit:
    """At most ``seconds`` for this ``share`` of the requests. ``of`` is what is measured: '' for
    the whole request, ``first_token``, or ``gap``: the mean time from one token of a request to
    its next."""

    of: str
    share: float
    seconds: float

    @property
    def name(self) -> str:
        percentile = f"p{100 * self.share:g}"
        return f"{self.of}_{percentile}" if self.of else percentile


@dataclass(frozen=True)
class Slo:
    """The objectives of one pipeline. ``rate`` is in requests per second; ``headroom`` is how much
    more of it has to be carried, ``errors`` the share of requests that may fail, ``goodput`` the
    share that has to meet all limits at once, ``soak_s`` how long it has to hold, in seconds.
    ``memory_mib_per_min`` is how fast the servers' memory may grow; None if that does not matter.
    ``apis`` are the weights with which requests choose one of APIS; empty for what the pipeline
    offers first. ``killed_errors`` is the share of requests that may fail because a replica is
    killed, of those that may be sent to another one: not of streams."""

    pipeline: str
    rate: float
    limits: tuple[Limit, ...]
    headroom: float = 0.0
    errors: float = ERRORS
    goodput: float | None = None
    soak_s: float = 0.0
    memory_mib_per_min: float | None = None
    apis: Mapping[str, float] = field(default_factory=dict)
    arrivals: Arrivals = POISSON
    killed_errors: float = 0.0

    @property
    def widest_s(self) -> float:
        """The longest time that any limit allows, in seconds."""
        return max((limit.seconds for limit in self.limits), default=0.0)

    @property
    def tested_rate(self) -> float:
        """Requests per second."""
        return self.rate * (1 + self.headroom)


@dataclass(frozen=True)
class Objectives:
    """A file of objectives as it was when it was read: pipeline -> its own, and the ``text``."""

    slos: dict[str, Slo]
    text: str


def read_objectives(path: Path) -> Objectives:
    """Raises SloError for a file that cannot be used whole."""
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except OSError as error:
        raise SloError(f"{path} cannot be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SloError(f"{path} is not TOML: {error}") from None
    if not document:
        raise SloError(
            f"{path} has no objectives: write a table [PIPELINE] with a rate and a limit"
        )
    return Objectives({name: _slo(path, name, table) for name, table in document.items()}, text)


def _slo(path: Path, pipeline: str, table: Any) -> Slo:
    place = f"{path}, [{pipeline}]"
    if not isinstance(table, Mapping):
        raise SloError(f"{path}: {pipeline} must be a table: write [{pipeline}]")
    limits = tuple(sorted(_limit(place, key, table[key]) for key in table if _is_limit(key)))
    known = {"rate", "headroom", "errors", "goodput", "soak", "memory", "api"}
    known |= {"arrivals", "burst", "killed_errors"}
    for key in table:
        if key not in known and not _is_limit(key):
            close = difflib.get_close_matches(key, [*known, "p50", "p95", "p99"], 1)
            hint = f": did you mean {close[0]}?" if close else ""
            raise SloError(f"{place}: {key!r} is not known{hint}")
    if "rate" not in table:
        raise SloError(f'{place}: the rate is missing: write rate = "50/s"')
    if not limits and "goodput" not in table:
        raise SloError(f'{place}: there is no limit: write p99 = "100ms", for example')
    apis = _apis(place, table["api"]) if "api" in table else {}
    if any(limit.of for limit in limits) and apis and not apis.keys() & set(STREAMS):
        raise SloError(
            f"{place}: first_token and gap are of streams: add chat or grpc-stream to its api"
        )
    slo = Slo(
        pipeline,
        _rate(place, table["rate"]),
        limits,
        _number(place, table, "headroom", 0.0, 10.0, 0.0),
        _number(place, table, "errors", FEWEST_ERRORS, 0.5, ERRORS),
        _number(place, table, "goodput", 0.01, 0.99999) if "goodput" in table else None,
        _seconds(place, "soak", table["soak"]) if "soak" in table else 0.0,
        _memory(place, table["memory"]) if "memory" in table else None,
        apis,
        _arrivals(place, table),
        _number(place, table, "killed_errors", 0.0, 0.5, 0.0),
    )
    require_burst_fits(place, slo)
    return slo


def require_burst_fits(place: str, slo: Slo) -> None:
    """SloError if more arrives in bursts than the rate that is tested."""
    try:
        slo.arrivals.require_fits(slo.tested_rate)
    except ValueError as error:
        raise SloError(f"{place}: {error}") from None


def _is_limit(key: str) -> bool:
    of, _, percentile = key.rpartition("_")
    return of in _OF and _PERCENTILE.fullmatch(percentile) is not None


def _limit(place: str, key: str, value: Any) -> Limit:
    of, _, percentile = key.rpartition("_")
    share = float(percentile[1:]) / 100
    if share <= 0:
        raise SloError(f"{place}: {key} is no percentile that can be measured: write p50 to p99.9")
    return Limit(of, share, _seconds(place, key, value))


def _seconds(place: str, key: str, value: Any) -> float:
    if not isinstance(value, str):
        raise SloError(f'{place}: {key} = {value!r} has no unit: write "{value}ms" or "{value}s"')
    try:
        return seconds_of(value)
    except ValueError as error:
        raise SloError(f"{place}: {key}: {error}") from None


def _rate(place: str, value: Any) -> float:
    if not isinstance(value, str):
        raise SloError(f'{place}: rate = {value!r} has no unit: write "{value}/s" or "{value}/min"')
    match = _RATE.fullmatch(value.strip())
    rate = float(match[1]) / _PER_S[match[2]] if match else 0.0
    if not rate:
        raise SloError(f"{place}: {value!r} is not a rate above 0: write 50/s, 300/min or 1000/h")
    return rate


def _memory(place: str, value: Any) -> float:
    match = _MEMORY.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise SloError(f'{place}: memory = {value!r} is no growth: write memory = "5MiB/min"')
    return float(match[1]) * _MIB[match[2]] * _PER_MIN[match[3]]


def _arrivals(place: str, table: Mapping[str, Any]) -> Arrivals:
    burst = table.get("burst")
    try:
        parsed = burst_of(str(burst)) if burst is not None else None
        return Arrivals(str(table.get("arrivals", POISSON.kind)), parsed)
    except ValueError as error:
        raise SloError(f"{place}: {error}") from None


def _apis(place: str, value: Any) -> dict[str, float]:
    weights = {value: 1.0} if isinstance(value, str) else value
    if not isinstance(weights, Mapping) or not weights:
        raise SloError(f"{place}: api = {value!r} is not understood: write one of {APIS}")
    for api, weight in weights.items():
        if api not in APIS:
            raise SloError(f"{place}: api {api!r} is not known: write one of {', '.join(APIS)}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or weight <= 0:
            raise SloError(f"{place}: api {api} = {weight!r} is not a weight above 0")
    return {api: float(weight) for api, weight in weights.items()}


def _number(
    place: str,
    table: Mapping[str, Any],
    key: str,
    least: float,
    most: float,
    default: float = math.nan,
) -> float:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise SloError(f"{place}: {key} = {value!r} is not a number from {least:g} to {most:g}")
    return float(value)
