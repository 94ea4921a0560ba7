"""Whether each Python process (*stub*) of a Triton makes progress: idles, works, hangs, or is
stopped.

Triton does not report this: its counts are per model, and an instance that hangs in ``execute`` is
hidden by its siblings. Two things that Linux shows of a process reveal it. Its shared memory begins
with the queues over which it talks to Triton, and each request and response changes them. And while
it has nothing to do, its main thread waits (futex) for the first of these queues.
"""

import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from serving.triton.stubs import Stub

LOOK_EVERY_S = 1.0
STOPPED_S = 5.0  # a process that was stopped (SIGSTOP) for this long does not resume by itself
HUNG_S = 60.0  # in a request, without talking to Triton and without using the CPU
BUSY_S = 300.0  # in a request, without talking to Triton: it is in an endless loop
BUSY_SHARE = 0.2  # of one core
LOAD_GRACE_S = 60.0  # after the longest load that is waited for (``TritonControl.load``)
LOADED_AFTER = 3  # looks with traffic after which a process is known to have loaded its model
_HEAD_BYTES = 64 * 1024  # of the shared memory: contains the queues
_WORD = 8
_TRAFFIC_WORDS = 4  # Triton's own health check of a process changes fewer
_FUTEX = {"x86_64": "202", "aarch64": "98"}.get(platform.machine(), "")


@dataclass
class _Seen:
    """One process; times are monotonic seconds, None while the state does not hold."""

    head: bytes
    moved: float  # when it last talked to Triton, or had nothing to do
    idle_since: float | None
    cpu_s: float
    looked: float
    worked: float  # when it was last seen to use the CPU
    stopped_since: float | None = None
    is_idle_visible: bool = True  # whether the kernel shows what it waits for
    talks: int = 0  # looks at which it had talked, or was idle: not while it loads its model
    fault: str = ""


class Progress:
    """Call ``look`` often. ``longest_request_s`` is how long a request may legitimately take,
    ``load_timeout_s`` how long a model's load may."""

    def __init__(self, longest_request_s: float, load_timeout_s: float) -> None:
        self.longest_request_s = longest_request_s
        self._longest_load_s = load_timeout_s + LOAD_GRACE_S
        self._seen: dict[Stub, _Seen] = {}
        self._loaded: frozenset[Stub] = frozenset()
        self._next_look = 0.0
        self._regions: dict[Stub, range] = {}
        self._queue_at = _HEAD_BYTES  # where in the shared memory a process waits for work

    @property
    def hung_s(self) -> float:
        """A process that has been in a request for so long, doing nothing, hangs: no caller still
        waits for it."""
        return max(HUNG_S, 2 * self.longest_request_s)

    def loaded(self, stubs: Iterable[Stub]) -> None:
        """Mark these as having loaded their models. Others show it once they wait for work."""
        self._loaded = frozenset(stubs)

    def look(self, stubs: Iterable[Stub]) -> None:
        """Look at these processes, at most every ``LOOK_EVERY_S`` seconds."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_EVERY_S
        alive = set(stubs)
        self._seen = {stub: seen for stub, seen in self._seen.items() if stub in alive}
        self._regions = {stub: region for stub, region in self._regions.items() if stub in alive}
        for stub in alive:
            try:
                self._look_at(stub, now)
            except (OSError, psutil.Error):
                continue  # it has just ended

    def hung(self) -> dict[Stub, str]:
        """The processes that hang, each with a description."""
        return {stub: seen.fault for stub, seen in self._seen.items() if seen.fault}

    def idle_s(self, stub: Stub) -> float:
        """For how many seconds it has had nothing to do; 0 while it has, and for an unknown one."""
        seen = self._seen.get(stub)
        if seen is None or seen.stopped_since is not None:
            return 0.0
        if not seen.is_idle_visible:  # then only one that is silent for very long counts as idle
            return max(0.0, seen.looked - max(seen.moved, seen.worked) - self.hung_s)
        return 0.0 if seen.idle_since is None else seen.looked - seen.idle_since

    def _look_at(self, stub: Stub, now: float) -> None:
        process = psutil.Process(stub.pid)
        times = process.cpu_times()
        cpu_s, head = times.user + times.system, _head(stub)
        waits_at = self._waits_at(stub)
        if waits_at is not None and waits_at >= 0:
            self._queue_at = min(self._queue_at, waits_at)
        is_idle = waits_at == self._queue_at
        seen = self._seen.get(stub)
        if seen is None:
            idle_since = now if is_idle else None
            self._seen[stub] = _Seen(head, now, idle_since, cpu_s, now, now)
            self._seen[stub].talks = LOADED_AFTER * is_idle
            return
        has_talked = _changed_words(seen.head, head) >= _TRAFFIC_WORDS
        if has_talked or is_idle:
            seen.moved = now
            seen.talks += LOADED_AFTER if is_idle else 1
        if cpu_s - seen.cpu_s > BUSY_SHARE * (now - seen.looked):
            seen.worked = now
        seen.idle_since = (seen.idle_since or now) if is_idle and not has_talked else None
        seen.is_idle_visible = waits_at is not None
        seen.head, seen.cpu_s, seen.looked = head, cpu_s, now
        is_stopped = process.status() == psutil.STATUS_STOPPED
        seen.stopped_since = (seen.stopped_since or now) if is_stopped else None
        seen.fault = self._fault(stub, seen, now)

    def _fault(self, stub: Stub, seen: _Seen, now: float) -> str:
        if seen.stopped_since is not None:
            is_long = now - seen.stopped_since >= STOPPED_S
            return f"it has been stopped for {now - seen.stopped_since:.0f} s" if is_long else ""
        silent_s = now - seen.moved
        is_loading = seen.talks < LOADED_AFTER and stub not in self._loaded
        if not seen.is_idle_visible or (is_loading and silent_s < self._longest_load_s):
            return ""
        if now - max(seen.moved, seen.worked) >= self.hung_s:
            return f"it has been in one request for {silent_s:.0f} s and does nothing"
        if silent_s >= max(BUSY_S, self.hung_s):
            return f"it has been in one request for {silent_s:.0f} s and does not end it"
        return ""

    def _waits_at(self, stub: Stub) -> int | None:
        """The offset in its shared memory at which the main thread waits; -1 if it waits nowhere in
        it, None if the kernel does not show it."""
        try:
            words = Path(f"/proc/{stub.pid}/syscall").read_text().split()
        except OSError:
            return None
        if not words or not _FUTEX:
            return None
        if words[0] != _FUTEX:
            return -1
        address = int(words[1], 16)
        if address not in self._regions.get(stub, range(0)):
            self._regions[stub] = _region(stub)  # it moves when it grows
        region = self._regions[stub]
        return address - region.start if address in region else -1


def _region(stub: Stub) -> range:
    """The addresses at which the process maps its shared memory; empty if it maps none."""
    for line in Path(f"/proc/{stub.pid}/maps").read_text().splitlines():
        if line.rstrip().endswith(f"/{stub.region}"):
            start, end = (int(address, 16) for address in line.split()[0].split("-"))
            return range(start, end)
    return range(0)


def _head(stub: Stub) -> bytes:
    with Path("/dev/shm", stub.region).open("rb") as file:  # noqa: S108 - POSIX's shared memory
        return file.read(_HEAD_BYTES)


def _changed_words(before: bytes, after: bytes) -> int:
    """How many words differ; counting stops at ``_TRAFFIC_WORDS``."""
    if before == after:
        return 0
    count = abs(len(before) - len(after))
    for offset in range(0, min(len(before), len(after)), _WORD):
        count += before[offset : offset + _WORD] != after[offset : offset + _WORD]
        if count >= _TRAFFIC_WORDS:
            break
    return count
