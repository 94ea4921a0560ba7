"""Sends requests when they are due, whether or not earlier ones were answered: an open loop."""

import time
from collections.abc import Callable, Mapping

import gevent
import gevent.pool
import numpy as np
import numpy.typing as npt

from loadtests.signoff.arrivals import Times
from loadtests.signoff.samples import Samples
from loadtests.signoff.sending import Prepared, Source

MOST_LATE_S = 3.0  # behind its own schedule: it never catches up
PARTS = ("first_token", "gap", "gateway", "upstream")


def run(
    source: Source,
    due: Times,
    rate: float,
    duration_s: float,
    progress: Callable[[float], None] = lambda elapsed_s: None,
    began: float | None = None,
) -> Samples:
    """Send one request at each of the times that are ``due``, in seconds from now, or from when it
    ``began`` (``time.perf_counter()``), and wait for the answers: ``duration_s`` in all, at
    ``rate`` requests per second in the mean. It gives up if it is seconds late: ``meant_s``."""
    latency_s, lag_s = np.zeros(len(due)), np.zeros(len(due))
    faults = [""] * len(due)
    labels: list[Mapping[str, str]] = []
    parts_s = {part: np.full(len(due), np.nan) for part in PARTS}
    # Not bounded: what finds no free connection waits for one, and its wait counts.
    sent = gevent.pool.Group()
    began = time.perf_counter() if began is None else began
    cpu_began, woke = time.process_time(), time.perf_counter()

    def send(index: int, prepared: Prepared) -> None:
        lag_s[index] = time.perf_counter() - began - due[index]
        response = prepared.send()
        latency_s[index] = time.perf_counter() - began - due[index]
        for part in PARTS:
            parts_s[part][index] = response.parts_s.get(part, np.nan)
        faults[index] = response.fault

    shown_s, count, meant_s = 0.0, len(due), 0.0
    for index, at_s in enumerate(due):
        if time.perf_counter() - began - at_s > MOST_LATE_S:
            count, duration_s, meant_s = index, float(at_s), duration_s
            break
        prepared = source.prepare()
        labels.append(prepared.labels)
        wait_s = began + at_s - time.perf_counter()
        # Even when late: what was answered meanwhile must be read.
        gevent.sleep(max(0.0, wait_s))
        sent.spawn(send, index, prepared)
        if at_s - shown_s >= 1:
            shown_s = at_s
            progress(float(at_s))
    sent.join()
    elapsed_s = time.perf_counter() - woke
    cpu = (time.process_time() - cpu_began) / elapsed_s if elapsed_s else 0.0
    # A first token is measured from the time at which its request was meant to be sent, too.
    parts_s["first_token"] += lag_s
    return Samples(
        rate,
        duration_s,
        due[:count],
        latency_s[:count],
        lag_s[:count],
        np.array(faults[:count], str),
        {part: values[:count] for part, values in parts_s.items()},
        _columns(labels),
        cpu,
        meant_s,
        began,
    )


def run_closed(source: Source, concurrency: int, seconds: float) -> Samples:
    """Keep so many requests under way for so many seconds: each caller sends its next one when the
    last one was answered. That flatters latencies: for comparisons with other clients alone."""
    latency_s: list[float] = []
    faults: list[str] = []
    parts_s: dict[str, list[float]] = {part: [] for part in PARTS}
    began, cpu_began = time.perf_counter(), time.process_time()

    def call() -> None:
        while (sent := time.perf_counter()) - began < seconds:
            response = source.prepare().send()
            latency_s.append(time.perf_counter() - sent)
            faults.append(response.fault)
            for part in PARTS:
                parts_s[part].append(response.parts_s.get(part, np.nan))

    gevent.joinall([gevent.spawn(call) for _ in range(concurrency)])
    elapsed_s = time.perf_counter() - began
    zeros = np.zeros(len(faults))
    cpu = (time.process_time() - cpu_began) / elapsed_s
    rate = len(faults) / elapsed_s
    return Samples(
        *(rate, elapsed_s, zeros, np.array(latency_s), zeros, np.array(faults, str)),
        {part: np.array(values) for part, values in parts_s.items()},
        cpu=cpu,
    )


def _columns(rows: list[Mapping[str, str]]) -> dict[str, npt.NDArray[np.str_]]:
    names = sorted(set().union(*rows))
    return {name: np.array([row.get(name, "") for row in rows], str) for name in names}
