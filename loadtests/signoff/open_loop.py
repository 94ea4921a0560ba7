"""Sends requests when they are due, whether or not earlier ones were answered: an open loop.

Only ``python -m loadtests.signoff`` imports this: gevent patches the whole process.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import gevent
import gevent.pool
import numpy as np
from geventhttpclient import HTTPClient

from loadtests.signoff.arrivals import Arrivals, arrival_times
from loadtests.signoff.samples import Samples

# So many requests may be under way: more than any stack that holds its limits leaves open. What is
# due beyond that waits here, and its wait counts in its latency.
MOST_OPEN = 512


@dataclass(frozen=True)
class Target:
    """Where to send, as which caller, and what: ``body`` is called for each request."""

    url: str
    path: str
    key: str
    body: Callable[[], bytes]
    timeout_s: float = 35.0  # above the gateway's deadline of 30 s, so that its 504 arrives


class OpenLoop:
    """A client with a pool of connections; use it as a context manager."""

    def __init__(self, target: Target) -> None:
        self.target = target
        parts = urlsplit(target.url)
        self._client = HTTPClient(
            parts.hostname or "",
            parts.port or (443 if parts.scheme == "https" else 80),
            ssl=parts.scheme == "https",
            concurrency=MOST_OPEN,
            connection_timeout=target.timeout_s,
            network_timeout=target.timeout_s,
            headers={
                "Authorization": f"Bearer {target.key}",
                "Content-Type": "application/json",
            },
        )

    def __enter__(self) -> "OpenLoop":
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def run(
        self,
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
        pool = gevent.pool.Pool(MOST_OPEN)
        began, cpu_began = time.perf_counter(), time.process_time()

        def send(index: int, body: bytes) -> None:
            lag_s[index] = time.perf_counter() - began - due[index]
            fault = self._send(body)
            latency_s[index] = time.perf_counter() - began - due[index]
            if fault:
                failed[index] = True
                errors[fault] += 1

        shown_s = 0.0
        for index, at_s in enumerate(due):
            body = self.target.body()
            wait_s = began + at_s - time.perf_counter()
            # Even when late: what was answered meanwhile must be read.
            gevent.sleep(max(0.0, wait_s))
            pool.spawn(send, index, body)
            if at_s - shown_s >= 1:
                shown_s = at_s
                progress(float(at_s))
        pool.join()
        elapsed_s = time.perf_counter() - began
        cpu = (time.process_time() - cpu_began) / elapsed_s if elapsed_s else 0.0
        return Samples(rate, duration_s, latency_s, lag_s, failed, errors, cpu)

    def _send(self, body: bytes) -> str:
        """'' or why the request counts as failed."""
        try:
            response = self._client.post(self.target.path, body=body)
            response.read()
        except Exception as error:  # of the network, and of the client's parser
            return type(error).__name__
        return "" if response.status_code == 200 else f"HTTP {response.status_code}"
