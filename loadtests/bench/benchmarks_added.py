"""What the gateway adds to a request at half of its load, with everything on that a production
gateway has: keys, policy, a limit, the audit log, the request log, metrics."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from loadtests.bench.open_loop import Waits, poisson, send_when_due
from loadtests.bench.passes import Ratio
from loadtests.bench.payloads import identity_json
from loadtests.bench.report import Floor, Section
from loadtests.bench.settings import Effort
from loadtests.bench.stack import BenchStack
from loadtests.bench.wrk import run

CONNECTIONS = 8
SHARE = 0.5  # of the throughput in a closed loop
PASS_S = 5.0  # ten times the length that p99 needs at 200 requests/s
MOST_P50_MS, MOST_P99_MS = 0.6, 3.0
DIRECT, GATEWAY = "Triton, V2 JSON", "gateway, V2 JSON"
QUANTILES = (0.5, 0.95, 0.99)


@dataclass(frozen=True)
class WaitsRow:
    """The median of the passes. ``whole_ms``: p50, p95 and p99 of what a client waits, from when
    its request was due; ``lag_p99_ms``: how late the generator itself was."""

    COLUMNS: ClassVar[tuple[str, ...]] = (
        *("what", "load", "p50 ms", "p95 ms", "p99 ms", "generator's lag, p99 ms"),
    )

    name: str
    load: str
    whole_ms: tuple[float, float, float]
    lag_p99_ms: float

    def cells(self) -> list[str]:
        times = (*self.whole_ms, self.lag_p99_ms)
        return [self.name, self.load, *(f"{time_ms:.2f}" for time_ms in times)]


def added(stack: BenchStack, effort: Effort) -> Section:
    """Through the gateway less direct to Triton, both with the same arrivals of an open loop."""
    direct, gateway = (
        identity_json(DIRECT, stack, "triton"),
        identity_json(GATEWAY, stack, "gateway"),
    )
    run(gateway, CONNECTIONS, effort.seconds)  # warm
    rate = SHARE * run(gateway, CONNECTIONS, effort.seconds).rps
    passes: dict[str, list[Waits]] = {DIRECT: [], GATEWAY: []}
    for number in range(effort.rounds):
        due_s = poisson(rate, PASS_S, seed=number)
        targets = (direct, gateway) if number % 2 else (gateway, direct)
        for target in targets:
            passes[target.name].append(send_when_due(target, due_s))
    load = f"{rate:,.0f} requests/s"
    rows = [_row(name, load, waits) for name, waits in passes.items()]
    p50, _, p99 = (
        [
            float(np.quantile(ours.whole_ms, quantile) - np.quantile(theirs.whole_ms, quantile))
            for ours, theirs in zip(passes[GATEWAY], passes[DIRECT], strict=True)
        ]
        for quantile in QUANTILES
    )
    is_quiet = rows[0].whole_ms[-1] <= MOST_P99_MS
    floors = [
        _floor("p50", p50, MOST_P50_MS, is_quiet),
        _floor("p99", p99, MOST_P99_MS, is_quiet),
    ]
    return Section(
        "What the gateway adds at half of its load, everything on: V2 JSON of 16 values, open loop",
        rows,
        floors,
        [
            f"{SHARE:g} of what {CONNECTIONS} connections reach through the gateway in a closed "
            f"loop, at random times, the same for both; {PASS_S:g} s a pass.",
            "Until the last byte, from when a request was due: what it waited for its generator is "
            "included.",
            *([] if is_quiet else [f"Triton alone has a p99 of over {MOST_P99_MS:g} ms here."]),
        ],
    )


def _floor(what: str, added_ms: Sequence[float], most_ms: float, is_quiet: bool) -> Floor:
    """On a machine that is not quiet it may be held, but not missed."""
    ratio = Ratio.of([most_ms / max(ms, 0.001) for ms in added_ms])
    if not is_quiet:
        ratio = replace(ratio, high=max(ratio.high, 1.0))
    title = f"{what}: {np.median(added_ms):.2f} ms added, at most {most_ms:g} ms"
    return Floor(title, ratio, 1.0)


def _row(name: str, load: str, passes: Sequence[Waits]) -> WaitsRow:
    p50, p95, p99 = (
        float(np.median([np.quantile(waits.whole_ms, quantile) for waits in passes]))
        for quantile in QUANTILES
    )
    lag_ms = float(np.median([np.quantile(waits.lag_ms, 0.99) for waits in passes]))
    return WaitsRow(name, load, (p50, p95, p99), lag_ms)
