"""What the gateway adds to a request at half of its load, with everything on that a production
gateway has: keys, policy, a limit, the audit log, the request log, metrics."""

import asyncio
import re
import time
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from loadtests.bench.errors import BenchError
from loadtests.bench.gateway_alone import gateway_alone
from loadtests.bench.passes import Ratio
from loadtests.bench.payloads import IDENTITY_BODY, JSON
from loadtests.bench.report import Floor, Section
from loadtests.bench.settings import Effort
from loadtests.bench.wrk import LoadTarget, run

CONNECTIONS = 8
SHARE = 0.5  # of the throughput in a closed loop
PASS_S = 10.0  # ten times the length that p99 needs at 100 requests/s
MOST_P50_MS, MOST_P99_MS = 0.6, 3.0
_UPSTREAM = re.compile(rb"upstream;dur=([0-9.]+)")
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
Milliseconds = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AddedRow:
    """One pass. ``added_ms``: of each response, from when its request was due until its last byte,
    less what its upstream took; ``lag_ms``: how late each request was sent."""

    COLUMNS: ClassVar[tuple[str, ...]] = (
        *("pass", "load", "added p50 ms", "added p95 ms", "added p99 ms", "lag p99 ms"),
    )

    name: str
    load: str
    added_ms: tuple[float, float, float]
    lag_p99_ms: float

    def cells(self) -> list[str]:
        times = (*self.added_ms, self.lag_p99_ms)
        return [self.name, self.load, *(f"{time_ms:.2f}" for time_ms in times)]


def added(effort: Effort) -> Section:
    """An open loop: requests are sent when they are due (Poisson), and wait if the gateway does."""
    with gateway_alone(
        "loadtests.bench.instant_triton",
        ["1"],
        "m0",
        variables={"TIDEGATE_REQUEST_LOG": "{home}/requests.jsonl"},
    ) as alone:
        headers = JSON | {"Authorization": f"Bearer {alone.key}"}
        url = f"{alone.url}/v2/models/m0/infer"
        target = LoadTarget("gateway", url, headers, [IDENTITY_BODY], alone.processes)
        run(target, CONNECTIONS, 2)  # warm
        rate = SHARE * run(target, CONNECTIONS, effort.seconds).rps
        table = []
        for number in range(effort.rounds):
            added_ms, lag_ms = asyncio.run(open_loop(target, rate, PASS_S, seed=number))
            quantiles = np.quantile(added_ms, (0.5, 0.95, 0.99))
            p50, p95, p99 = (float(quantile) for quantile in quantiles)
            load = f"{rate:,.0f} requests/s"
            lag_p99_ms = float(np.quantile(lag_ms, 0.99))
            table.append(AddedRow(f"{number + 1}", load, (p50, p95, p99), lag_p99_ms))
    floors = [
        Floor(
            f"{what} of what is added: at most {most:g} ms",
            Ratio.of([most / row.added_ms[index] for row in table]),
            1.0,
        )
        for what, most, index in (("p50", MOST_P50_MS, 0), ("p99", MOST_P99_MS, 2))
    ]
    return Section(
        "What the gateway adds at half of its load, everything on: V2 JSON of 16 values, open loop",
        table,
        floors,
        [
            f"{SHARE:g} of the throughput of {CONNECTIONS} connections in a closed loop; "
            f"{PASS_S:g} s a pass.",
            "Until the last byte, as a client of some lines of Python sees it, from when it was due"
            " (lag included), less the `upstream` of `Server-Timing`.",
        ],
    )


async def open_loop(
    target: LoadTarget, rate: float, seconds: float, seed: int
) -> tuple[Milliseconds, Milliseconds]:
    """What each request had added, and how late it was sent, in milliseconds. Raises BenchError
    for a response that is not 200."""
    source = np.random.default_rng(seed)
    due_s = np.cumsum(source.exponential(1 / rate, int(rate * seconds)))
    added_ms, lag_ms = np.zeros(len(due_s)), np.zeros(len(due_s))
    address = urlsplit(target.url)
    head = f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\n" + "".join(
        f"{name}: {value}\r\n" for name, value in target.headers.items()
    )
    body = target.bodies[0]
    message = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    opened: list[asyncio.StreamWriter] = []

    async def send(index: int) -> None:
        if idle:
            reader, writer = idle.pop()
        else:
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
            opened.append(writer)
        lag_ms[index] = 1000 * (time.perf_counter() - began - due_s[index])
        writer.write(message)
        response = await reader.readuntil(b"\r\n\r\n")
        length, upstream = _LENGTH.search(response), _UPSTREAM.search(response)
        if not response.startswith(b"HTTP/1.1 200") or length is None or upstream is None:
            raise BenchError(f"the gateway answers {response[:200]!r}")
        await reader.readexactly(int(length[1]))
        took_ms = 1000 * (time.perf_counter() - began - due_s[index])
        added_ms[index] = took_ms - float(upstream[1])
        idle.append((reader, writer))

    try:
        async with asyncio.TaskGroup() as sending:
            began = time.perf_counter()
            for index, at_s in enumerate(due_s):
                await asyncio.sleep(max(0.0, began + at_s - time.perf_counter()))
                sending.create_task(send(index))
    except* BenchError as group:
        raise group.exceptions[0] from None
    finally:
        for writer in opened:
            writer.close()
    return added_ms, lag_ms
