"""Whether servers' memory grows: their resident memory over time, and its trend."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from loadtests.signoff.confidence import CONFIDENCE, Outcome
from loadtests.signoff.samples import Line
from loadtests.signoff.trend import BLOCKS, slope

MIB = 2**20
_TREE_EVERY_S = 20.0
# What listens here for a server elsewhere: its own memory says nothing.
_FORWARDERS = ("kubectl", "ssh", "docker-proxy", "nginx", "haproxy", "envoy", "socat")
_SHORTEST_S = 20.0  # a shorter time says nothing about a trend per minute


@dataclass(frozen=True)
class Drift:
    """The growth in MiB per minute, and its interval at 99 % confidence."""

    mib_per_min: float
    low: float
    high: float

    def line(self, limit: float) -> Line:
        """Whether memory grows by at most ``limit`` MiB per minute."""
        outcome = Outcome.UNDECIDED
        if self.high <= limit:
            outcome = Outcome.PASS
        elif self.low > limit:
            outcome = Outcome.FAIL
        return Line(
            "memory",
            f"at most {limit:g} MiB/min",
            f"{self.mib_per_min:+.2f} MiB/min",
            outcome,
            f"{self.low:+.2f} to {self.high:+.2f} MiB/min ({CONFIDENCE:.0%} confidence)",
        )


Reading = tuple[float, float]  # seconds since the first possible one, and MiB


def drift(readings: Sequence[Reading]) -> Drift | None:
    """The trend of memory; None for less than 20 s."""
    at, value = np.array(readings, float).reshape(-1, 2).T
    if len(at) < 2 * BLOCKS or at[-1] - at[0] < _SHORTEST_S:
        return None
    minutes = [float(block.mean()) for block in np.array_split(at / 60, BLOCKS)]
    means = [float(block.mean()) for block in np.array_split(value, BLOCKS)]
    growth, margin = slope(minutes, means, 0.5 + CONFIDENCE / 2)
    return Drift(growth, growth - margin, growth + margin)


class Memory:
    """Reads the resident memory of a process and its descendants from time to time. ``root`` is
    None if there is nothing to read: another machine, or another user's process."""

    def __init__(self, root: psutil.Process | None) -> None:
        self._root = root
        self._tree: list[psutil.Process] = []
        self.restart()

    def restart(self) -> None:
        """Forget what was read."""
        self.readings: list[Reading] = []
        self._tree_read = -math.inf  # or one that began before would be added amid the readings
        self._began = time.monotonic()

    def read(self) -> None:
        if self._root is None:
            return
        total = 0
        for process in self._processes(self._root):
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:  # it ended meanwhile
                continue
        if total:
            self.readings.append((time.monotonic() - self._began, total / MIB))

    def _processes(self, root: psutil.Process) -> list[psutil.Process]:
        # Looking through all processes of a machine takes so long that requests would be sent late.
        now = time.monotonic()
        if now - self._tree_read > _TREE_EVERY_S:
            self._tree_read = now
            try:
                self._tree = [root, *root.children(recursive=True)]
            except psutil.NoSuchProcess:
                self._tree = []
        return self._tree


def server_process(host: str, port: int) -> psutil.Process | None:
    """The process that listens on a port of this machine; of a stack of ours, the one that started
    all its servers. None for another machine, or a process of another user."""
    if host not in ("127.0.0.1", "localhost", "::1"):
        return None
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return None
    pids = {
        connection.pid
        for connection in connections
        if connection.status == psutil.CONN_LISTEN and connection.laddr[1:2] == (port,)
    }
    try:
        process = psutil.Process(min(pid for pid in pids if pid))
        while (parent := process.parent()) is not None and _is_ours(parent):
            process = parent
        return None if process.name() in _FORWARDERS else process
    except (ValueError, psutil.Error):
        return None


def _is_ours(process: psutil.Process) -> bool:
    """``tidegate up``, also as ``python -m tidegate up``; and a gateway with workers."""
    words = process.cmdline()
    names = {Path(word).name for word in words}
    return "tidegate" in names or words[1:3] == ["-m", "gateway"]
