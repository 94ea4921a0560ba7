"""What ``tidegate top`` shows: the replicas and models of a running gateway, from two looks at its
admin routes and its metrics."""

import http.client
import json
import os
import ssl
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any
from urllib.parse import urlsplit

from serving.errors import ServingError
from tidegate.app.claim import NothingRuns, ready_in
from tidegate.app.direct import direct_opener
from tidegate.app.errors import UsageError
from tidegate.app.paths import Paths

TIMEOUT_S = 5.0
NOT_MODELS = ("", "unknown", "other")  # labels of requests to no model in particular
REQUESTS, SECONDS = "tidegate_requests_total", "tidegate_request_seconds_bucket"
FIRST_TOKEN = "gen_ai_server_time_to_first_token_seconds_bucket"  # noqa: S105 - a metric
CANARY_SECONDS = "tidegate_canary_seconds"
TOKENS = "gen_ai_client_token_usage_sum"
INFLIGHT, REPLICA_TOKENS = "tidegate_replica_inflight", "tidegate_replica_tokens"
Buckets = Mapping[float, float]  # upper bound in seconds -> how many took no longer
Labels = Mapping[str, str]


@dataclass(frozen=True)
class Replica:
    """``ejected`` has the models whose requests it does not get -> the seconds until it is tried
    again; ``probes`` those whose golden answer is wrong there -> the fault. ``tokens``: about those
    of the texts under way. A ``leaving`` one is no longer listed."""

    address: str
    health: str
    inflight: int
    tokens: int
    ejected: Mapping[str, float]
    probes: Mapping[str, str]
    drained: bool
    leaving: bool
    reason: str


@dataclass(frozen=True)
class Model:
    """Of the requests between the two looks; None where there were none. ``errors`` is the share
    that failed (5xx), ``refused`` that of 4xx; ``probe`` is what is wrong with its golden answer,
    or ''."""

    name: str
    requests_per_s: float
    p50_ms: float | None
    p95_ms: float | None
    errors: float | None
    refused: float | None
    first_token_p50_ms: float | None
    tokens_per_s: float | None
    probe: str


@dataclass(frozen=True)
class View:
    gateway: str
    seconds: float
    requests_per_s: float
    replicas: list[Replica] = field(default_factory=list)
    models: list[Model] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Look:
    """One look at a gateway; ``samples`` are those of each metric, ``at`` is in seconds."""

    at: float
    replicas: Sequence[Mapping[str, Any]]
    models: Sequence[Mapping[str, Any]]
    samples: Mapping[str, Sequence[tuple[Labels, float]]]


class GatewayRefuses(ServingError):
    """The gateway has answered, and will answer the same when it is asked again."""


class Gateway:
    """The operator's listener of a gateway."""

    def __init__(self, url: str, key: str, certificate_file: str = "") -> None:
        self.url, self._key = url.rstrip("/"), key
        tls = None
        if certificate_file:
            # Our own gateway is trusted by its certificate, whatever the name in it.
            tls = ssl.create_default_context(cafile=certificate_file)
            tls.check_hostname = False
            tls.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        self._opener = direct_opener(tls)

    @classmethod
    def of(cls, paths: Paths, url: str | None) -> "Gateway":
        """That of ``url``, else of the stack that runs here. Raises StillStarting, ServingError
        without a key, and UsageError for what is no URL."""
        running = None if url else ready_in(paths.state)
        if url:
            require_url(url)
        elif running is None:  # not another home's gateway, which would get our key
            raise NothingRuns(
                f"nothing is running in {paths.home}: tidegate up starts it; --url asks another "
                "gateway"
            )
        key = os.environ.get("TIDEGATE_API_KEY", "")
        if not key:
            if not paths.dev_key.exists():
                raise ServingError(f"no key at {paths.dev_key}: start the stack with `make up`")
            key = paths.dev_key.read_text().strip()
        if running is not None:
            return cls(running.admin, key, running.certificate_file)
        return cls(str(url), key)

    def replicas(self) -> list[dict[str, Any]]:
        """Each replica as the admin route describes it. Raises ServingError like ``look``."""
        replicas: list[dict[str, Any]] = json.loads(self._get("/admin/replicas"))["replicas"]
        return replicas

    def look(self) -> Look:
        """Raises ServingError if it does not answer, or refuses the key."""
        from prometheus_client.parser import text_string_to_metric_families

        page = self._get("/metrics").decode()
        samples: dict[str, list[tuple[Labels, float]]] = defaultdict(list)
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                samples[sample.name].append((sample.labels, sample.value))
        replicas = self.replicas()
        models = json.loads(self._get("/admin/models"))["models"]
        return Look(time.monotonic(), replicas, models, samples)

    def policy(self) -> Mapping[str, Any]:
        """The rules in force. Raises ServingError like ``look``."""
        policy: Mapping[str, Any] = json.loads(self._get("/admin/policy"))
        return policy

    def drain(self, address: str) -> None:
        """Have the gateway send no new requests to the replica (HOST:GRPC_PORT) for a minute from
        now. Raises ServingError like ``look``."""
        self._call("PUT", f"/admin/replicas/{address}/drain")

    def lift_drain(self, address: str) -> None:
        """Have it send requests to the replica again. Raises ServingError like ``look``."""
        self._call("DELETE", f"/admin/replicas/{address}/drain")

    def _get(self, path: str) -> bytes:
        return self._call("GET", path)

    def _call(self, method: str, path: str) -> bytes:
        request = urllib.request.Request(  # noqa: S310 - the user's own gateway
            f"{self.url}{path}",
            headers={"Authorization": f"Bearer {self._key}"},
            method=method,
        )
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as response:
                body: bytes = response.read()
                return body
        except urllib.error.HTTPError as error:
            why = "is it the operator's listener?"
            if error.code == 401:
                by_hand = " (TIDEGATE_API_KEY is set)" if "TIDEGATE_API_KEY" in os.environ else ""
                why = f"the key is not valid{by_hand}: see `tidegate keys list`"
            elif error.code == 403:
                why = "the key needs a role with the action admin"
            is_final = error.code in (401, 403, 404)
            raise (GatewayRefuses if is_final else ServingError)(
                f"{self.url}{path} answers {error.code}: {why}"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise ServingError(
                f"no gateway answers at {self.url}: it is the operator's listener "
                f"(TIDEGATE_ADMIN_PORT; {error})"
            ) from error


def require_url(url: str) -> None:
    """UsageError unless it is the URL of a listener."""
    try:
        parts = urlsplit(url)
        is_right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port or an IPv6 address that is none
        is_right = False
    if not is_right or not url.isascii():
        raise UsageError(f"--url {url!r} is not a listener's URL: write http://HOST:PORT")


def compare(gateway: str, first: Look, second: Look) -> View:
    """What happened between two looks at the same gateway."""
    seconds = max(second.at - first.at, 1e-9)
    probes = {str(model["name"]): str(model["probe"]) for model in second.models}
    public = {str(model["name"]) for model in second.models if model["public"]}
    requests = _changes(first, second, REQUESTS, ("model", "status"))
    # What an operator asks is no load; and such a look is itself three of these.
    asked_here = _changes(first, second, REQUESTS, ("action",)).get(("admin",), 0.0)
    canaries = _changes(first, second, f"{CANARY_SECONDS}_count", ("canary", "arm", "status"))
    tokens = _changes(first, second, TOKENS, ("gen_ai_request_model", "gen_ai_token_type"))
    all_tokens = _totals(second, TOKENS, ("gen_ai_request_model", "gen_ai_token_type"))
    asked = {model for (model, _), count in requests.items() if count} - set(NOT_MODELS)
    models = []
    for name in sorted(public | asked):
        counts = {status: count for (model, status), count in requests.items() if model == name}
        took = _buckets(first, second, SECONDS, {"model": name, "status": "2xx"})
        if not any(counts.values()):  # callers ask for the pipeline, and get its canary
            counts = {
                status: count
                for (canary, arm, status), count in canaries.items()
                if (canary, arm) == (name, "canary")
            }
            arm = {"canary": name, "arm": "canary", "status": "2xx"}
            took = _buckets(first, second, f"{CANARY_SECONDS}_bucket", arm)
        total = sum(counts.values())
        first_token = _buckets(first, second, FIRST_TOKEN, {"gen_ai_request_model": name})
        # An embedding model reads tokens and writes none.
        written = tokens[name, "output"] if all_tokens.get((name, "output")) else None
        models.append(
            Model(
                name,
                total / seconds,
                _ms(quantile(took, 0.5)),
                _ms(quantile(took, 0.95)),
                _share(counts, "5", total),
                _share(counts, "4", total),
                _ms(quantile(first_token, 0.5)),
                None if written is None else written / seconds,
                probes.get(name, ""),
            )
        )
    every = (sum(requests.values()) - asked_here) / seconds
    return View(gateway, seconds, every, list(_replicas(second)), models)


def quantile(buckets: Buckets, share: float) -> float | None:
    """The quantile of a histogram's cumulative buckets, as Prometheus' ``histogram_quantile``
    estimates it: linear in a bucket, and the last bound for what is above it. None if it is empty.
    """
    bounds = sorted(buckets)
    if not bounds or not buckets[bounds[-1]]:
        return None
    rank = share * buckets[bounds[-1]]
    at = next(index for index, bound in enumerate(bounds) if buckets[bound] >= rank)
    if bounds[at] == inf:
        return bounds[at - 1] if at else None
    low, below = (bounds[at - 1], buckets[bounds[at - 1]]) if at else (0.0, 0.0)
    inside = buckets[bounds[at]] - below
    return low + (bounds[at] - low) * ((rank - below) / inside if inside else 1.0)


def views(gateway: Gateway, interval_s: float) -> Iterator[View]:
    """A view every ``interval_s`` seconds. Raises ServingError if the gateway does not answer."""
    first = gateway.look()
    while True:
        time.sleep(interval_s)
        second = gateway.look()
        yield compare(gateway.url, first, second)
        first = second


def _replicas(look: Look) -> Iterator[Replica]:
    # The admin route knows the requests of the worker that answers it, the metric those of all.
    inflight, tokens = (
        {labels["replica"]: value for labels, value in look.samples.get(metric, ())}
        for metric in (INFLIGHT, REPLICA_TOKENS)
    )
    for replica in look.replicas:
        address = str(replica["address"])
        yield Replica(
            address,
            replica["health"],
            int(inflight.get(address, replica["inflight"])),
            int(tokens.get(address, replica["tokens"])),
            replica["ejected"],
            replica["probes"],
            replica["drained"],
            replica["leaving"],
            replica["reason"],
        )


def _changes(
    first: Look, second: Look, metric: str, names: Sequence[str]
) -> dict[tuple[str, ...], float]:
    """By how much a counter has grown, by these labels. One that is smaller began anew: the
    gateway was restarted."""
    before, after = _totals(first, metric, names), _totals(second, metric, names)
    return {
        key: value - before.get(key, 0.0) if value >= before.get(key, 0.0) else value
        for key, value in after.items()
    }


def _totals(look: Look, metric: str, names: Sequence[str]) -> dict[tuple[str, ...], float]:
    totals: dict[tuple[str, ...], float] = defaultdict(float)
    for labels, value in look.samples.get(metric, ()):
        totals[tuple(labels.get(name, "") for name in names)] += value
    return totals


def _buckets(first: Look, second: Look, metric: str, selected: Labels) -> Buckets:
    """The cumulative buckets of what was observed between the looks, with these labels."""
    changes = _changes(first, second, metric, (*selected, "le"))
    return {
        float(key[-1]): count
        for key, count in changes.items()
        if key[:-1] == tuple(selected.values())
    }


def _share(counts: Mapping[str, float], first_digit: str, total: float) -> float | None:
    if not total:
        return None
    return sum(_matching(counts, first_digit)) / total


def _matching(counts: Mapping[str, float], first_digit: str) -> Iterable[float]:
    return (count for status, count in counts.items() if status.startswith(first_digit))


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3
