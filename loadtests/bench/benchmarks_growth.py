"""What a request costs the gateway as catalogue, keys and tenants grow, and as workers are added:
gateways in front of a Triton that answers at once."""

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench.gateway_alone import gateway_alone
from loadtests.bench.passes import Ratio, Rounds, alternate, wrk_pass
from loadtests.bench.payloads import IDENTITY_BODY, JSON
from loadtests.bench.report import Floor, Section, rows
from loadtests.bench.settings import Effort
from loadtests.bench.wrk import Figures, LoadTarget, run

CONNECTIONS = 8
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024
SHARED = 0.5  # of the throughput with limits in memory, at least, when they are in Redis
MANY, SLICES = 200_000, 5  # requests to one gateway, and in how many parts they are looked at
SLICE_S = 10  # of one pass of a part
KEPT = 0.9  # of its memory after the first part is all that it has after the last, at least
FLAT = 0.85  # of the throughput per CPU of the smallest setting; the rest is background work


@dataclass(frozen=True)
class Size:
    models: int = 1
    keys: int = 1
    tenants: int = 1
    workers: int = 1
    with_redis: bool = False

    @property
    def name(self) -> str:
        counts = ((self.models, "model"), (self.keys, "key"), (self.tenants, "tenant"))
        text = ", ".join(f"{number:,} {what}{'s' * (number > 1)}" for number, what in counts)
        text += f", {self.workers} workers" if self.workers > 1 else ""
        return text + (", limits in Redis" if self.with_redis else "")


@dataclass(frozen=True)
class Gateway:
    target: LoadTarget
    start_s: float

    def resident_mib(self) -> float:
        """The memory of its process and its children; what they share counts for each."""
        assert self.target.server is not None  # noqa: S101 - ``_gateway`` sets it
        pages = 0
        for pid in self.target.server.pids():
            pages += int((Path("/proc") / str(pid) / "statm").read_text().split()[1])
        return pages * PAGE_KIB / 1024


def growth(effort: Effort) -> Section:
    """Catalogue, keys and tenants: flat per request."""
    few, many = Size(), Size(1000, 10_000, 100)
    return _section("As work grows: V2 JSON of 16 values", [few, many], effort)


def workers(effort: Effort) -> Section:
    """More workers: as much CPU per request; more of it where there are more cores."""
    sizes = [Size(workers=count) for count in (1, 2, 4)]
    return _section("Workers: V2 JSON of 16 values", sizes, effort)


def redis(effort: Effort) -> Section:
    """Limits in memory, and in Redis: a call of it for each request."""
    memory, shared = Size(), Size(with_redis=True)
    title = "Limits in memory and in Redis: V2 JSON of 16 values"
    return _section(title, [memory, shared], effort)


def requests(effort: Effort) -> Section:
    """As many requests to one gateway: flat in CPU and memory."""
    title = f"{MANY:,} requests to one gateway: V2 JSON of 16 values"
    parts: dict[str, list[Figures]] = {}  # by the numbers of its requests
    memory_mib = []  # after each part
    with _gateway(Size()) as gateway:
        rate = run(gateway.target, CONNECTIONS, 2).rps  # and warm
        passes = math.ceil(MANY / SLICES / (rate * SLICE_S))  # of each part
        done = 0.0
        for _ in range(SLICES):
            figures = [run(gateway.target, CONNECTIONS, SLICE_S) for _ in range(passes)]
            first, done = done, done + sum(one.rps for one in figures) * SLICE_S
            parts[f"{first:,.0f} to {done:,.0f}"] = figures
            memory_mib.append(gateway.resident_mib())
    rounds = Rounds(parts)
    reference, *_, last = parts
    table = rows(rounds, reference, f"{CONNECTIONS} connections")
    per_cpu = rounds.efficiency(last, reference) or Ratio.of([0.0])
    notes = [
        f"{name}: {mib:.0f} MiB after them" for name, mib in zip(parts, memory_mib, strict=True)
    ]
    floors = [
        Floor("requests per CPU, last part over first", per_cpu, FLAT),
        Floor("memory, first part over last", Ratio.of([memory_mib[0] / memory_mib[-1]]), KEPT),
    ]
    return Section(title, table, floors, notes)


def _section(title: str, sizes: list[Size], effort: Effort) -> Section:
    with ExitStack() as stack:
        gateways = {size.name: stack.enter_context(_gateway(size)) for size in sizes}
        for gateway in gateways.values():
            run(gateway.target, CONNECTIONS, 2)  # warm
        before = {name: gateway.resident_mib() for name, gateway in gateways.items()}
        passes = {
            name: wrk_pass(gateway.target, CONNECTIONS, effort.seconds)
            for name, gateway in gateways.items()
        }
        rounds = alternate(passes, effort.rounds)
        reference = sizes[0].name
        notes = []
        for name, gateway in gateways.items():
            n_requests = sum(figures.rps for figures in rounds.figures[name]) * effort.seconds
            notes.append(
                f"{name}: ready after {gateway.start_s:.1f} s; {before[name]:.0f} MiB, "
                f"{gateway.resident_mib():.0f} MiB after {n_requests:,.0f} more requests"
            )
    floors = []
    for size in (size for size in sizes[1:] if size.workers == 1):
        efficiency = rounds.efficiency(size.name, reference)
        if size.with_redis:
            throughput = rounds.throughput(size.name, reference)
            floors.append(Floor("requests/s with limits in Redis", throughput, SHARED))
        elif efficiency:
            floors.append(Floor(f"requests per CPU with {size.name}", efficiency, FLAT))
    return Section(title, rows(rounds, reference, f"{CONNECTIONS} connections"), floors, notes)


@contextmanager
def _gateway(size: Size) -> Iterator[Gateway]:
    model = f"m{size.models - 1}"
    with gateway_alone(
        "loadtests.bench.instant_triton",
        [str(size.models)],
        model,
        size.keys,
        size.tenants,
        size.workers,
        with_redis=size.with_redis,
    ) as alone:
        target = LoadTarget(
            size.name,
            f"{alone.url}/v2/models/{model}/infer",
            JSON | {"Authorization": f"Bearer {alone.key}"},
            [IDENTITY_BODY],
            alone.processes,
        )
        yield Gateway(target, alone.start_s)
