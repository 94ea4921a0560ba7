"""Requests with many rows and large bodies, through the gateway and directly to Triton: throughput,
the gateway's memory, and how long they make other callers wait."""

import http.client
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar
from urllib.parse import urlsplit

from loadtests.bench.errors import BenchError
from loadtests.bench.passes import Pass, alternate
from loadtests.bench.payloads import (
    embedding_task,
    embedding_v2,
    image_task,
    image_v2,
    large_binary,
    large_json,
    photo,
)
from loadtests.bench.report import Section, rows
from loadtests.bench.settings import Effort
from loadtests.bench.stack import BenchStack
from loadtests.bench.streams import percentile
from loadtests.bench.wrk import Figures, LoadTarget, run

ROWS = 64
IMAGE_BYTES, TENSOR_BYTES = 1_000_000, 10_000_000
CONNECTIONS = 2
WARM_S = 5
LONGER = 2  # times as long a pass: a request of 10 MB of JSON takes a second
PROBE_EVERY_S = 0.005
GATEWAY: Final = "gateway"
DIRECT: Final = "triton"

T = TypeVar("T")


@dataclass
class Waits:
    """How long ``GET /healthz`` took while a pass ran, in seconds."""

    url: str
    seconds: list[float] = field(default_factory=list)
    fault: str = ""

    def during(self, work: Callable[[], T]) -> T:
        """Run the work, with a request every ``PROBE_EVERY_S`` beside it, each on its own.
        BenchError if one of them fails."""
        stop = threading.Event()
        probe = threading.Thread(target=self._probe, args=(stop,))
        probe.start()
        try:
            result = work()
        finally:
            stop.set()
            probe.join()
        if self.fault:
            raise BenchError(self.fault)
        return result

    def _probe(self, stop: threading.Event) -> None:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=30)
        while not stop.wait(PROBE_EVERY_S):
            began = time.perf_counter()
            connection.request("GET", "/healthz")
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                self.fault = f"GET /healthz was answered with {response.status}"
                break
            self.seconds.append(time.perf_counter() - began)
        connection.close()

    def __str__(self) -> str:
        p50, p99 = (percentile(self.seconds, share) * 1e3 for share in (0.5, 0.99))
        longest = max(self.seconds) * 1e3
        return f"{p50:.1f} ms at p50, {p99:.1f} ms at p99, {longest:.0f} ms at most"


def many_rows(stack: BenchStack, effort: Effort) -> Section:
    """64 texts a request."""
    targets = [
        embedding_v2("Triton, V2 JSON", stack, DIRECT, ROWS),
        embedding_v2("gateway, V2 JSON", stack, GATEWAY, ROWS),
        embedding_task("gateway, task route", stack, ROWS),
    ]
    return _section(f"{ROWS} texts a request", stack, [targets], effort)


def large_bodies(stack: BenchStack, effort: Effort) -> Section:
    """Images of 1 MB, tensors of 10 MB."""
    image = photo(IMAGE_BYTES)
    images = [
        image_v2("Triton, 1 MB image, V2 binary", stack, DIRECT, image),
        image_v2("gateway, 1 MB image, V2 binary", stack, GATEWAY, image),
        image_task("gateway, 1 MB image, task route", stack, image),
    ]
    binary = [
        large_binary("Triton, 10 MB tensor, V2 binary", stack, DIRECT, TENSOR_BYTES),
        large_binary("gateway, 10 MB tensor, V2 binary", stack, GATEWAY, TENSOR_BYTES),
    ]
    json = [
        large_json("Triton, 10 MB tensor, V2 JSON", stack, DIRECT, TENSOR_BYTES),
        large_json("gateway, 10 MB tensor, V2 JSON", stack, GATEWAY, TENSOR_BYTES),
    ]
    return _section("Large bodies", stack, [images, binary, json], effort)


def _section(
    title: str, stack: BenchStack, groups: Sequence[Sequence[LoadTarget]], effort: Effort
) -> Section:
    """One table; the first target of each group is Triton itself, which the others are relative
    to."""
    table, seconds = [], LONGER * effort.seconds
    idle = Waits(stack.gateway)
    idle.during(lambda: time.sleep(effort.seconds))
    notes = [f"GET /healthz on an idle gateway: {idle}"]
    for targets in groups:
        for target in targets:
            run(target, CONNECTIONS, WARM_S)
        stack.processes.reset_peaks(GATEWAY)
        waits = {t.name: Waits(stack.gateway) for t in targets[1:]}
        passes = {t.name: _pass(t, seconds, waits.get(t.name)) for t in targets}
        rounds = alternate(passes, effort.rounds)
        table += rows(rounds, targets[0].name, f"{CONNECTIONS} connections")
        notes += [f"GET /healthz beside {name}: {wait}" for name, wait in waits.items()]
        peak = stack.processes.peak_mib(GATEWAY)
        notes.append(f"the gateway's peak memory during these: {peak:.0f} MiB")
    return Section(title, table, (), notes)


def _pass(target: LoadTarget, seconds: int, waits: Waits | None) -> Pass:
    def measured() -> Figures:
        return run(target, CONNECTIONS, seconds)

    return (lambda: waits.during(measured)) if waits else measured
