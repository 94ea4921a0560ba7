"""Sends requests when they are due, whether or not earlier ones were answered: an open loop.

Only ``python -m loadtests.signoff`` imports this: gevent patches the whole process.
"""

import time
from collections import Counter
from collections.abc import Callable

import gevent
import gevent.pool
import numpy as np

from loadtests.signoff.arrivals import Arrivals, arrival_times
from loadtests.signoff.requests import Answer, Mix
from loadtests.signoff.samples import Samples

PARTS = ("first_token", "gap", "gateway", "upstream")


def run(
    mix: Mix,
    rate: float,
    duration_s: float,
    arrivals: Arrivals = Arrivals.POISSON,
    seed: int = 0,
    progress: Callable[[float], None] = lambda elapsed_s: None,
) -> Samples:
    """Load at ``rate`` requests per second for so many seconds, and wait for the answers."""
    due = arrival_times(arrivals, rate, duration_s, seed)
    latency_s, lag_s = np.zeros(len(due)), np.zeros(len(due))
    failed, errors = np.zeros(len(due), bool), Counter[str]()
    parts_s = {part: np.full(len(due), np.nan) for part in PARTS}
    # Not bounded: what finds no free connection waits for one, and its wait counts.
    sent = gevent.pool.Group()
    began, cpu_began = time.perf_counter(), time.process_time()

    def send(index: int, prepared: Callable[[], Answer]) -> None:
        lag_s[index] = time.perf_counter() - began - due[index]
        answer = prepared()
        latency_s[index] = time.perf_counter() - began - due[index]
        for part in PARTS:
            parts_s[part][index] = answer.parts_s.get(part, np.nan)
        if answer.fault:
            failed[index] = True
            errors[answer.fault] += 1

    shown_s = 0.0
    for index, at_s in enumerate(due):
        prepared = mix.prepare()
        wait_s = began + at_s - time.perf_counter()
        # Even when late: what was answered meanwhile must be read.
        gevent.sleep(max(0.0, wait_s))
        sent.spawn(send, index, prepared)
        if at_s - shown_s >= 1:
            shown_s = at_s
            progress(float(at_s))
    sent.join()
    elapsed_s = time.perf_counter() - began
    cpu = (time.process_time() - cpu_began) / elapsed_s if elapsed_s else 0.0
    # A first token is measured from the time at which its request was meant to be sent, too.
    parts_s["first_token"] += lag_s
    return Samples(rate, duration_s, due, latency_s, lag_s, failed, parts_s, errors, cpu)
