"""Responses in the memory of this worker: the least recently used ones go first."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Container
from typing import NamedTuple

from gateway.response_cache.key import CacheScope

ENTRY_BYTES = 400  # what an entry costs besides its response: key, places in the two dictionaries
LARGEST_SHARE = 8  # a response larger than this part of the memory is not kept


class Kept(NamedTuple):
    """A response, and how long it may still be kept."""

    response: bytes
    remaining_s: float


class _Entry(NamedTuple):
    scope: CacheScope
    response: bytes
    expires_at: float


class MemoryStore:
    """At most ``limit_bytes`` of responses, none older than ``ttl_s``."""

    def __init__(
        self, limit_bytes: int, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limit_bytes, self._ttl_s, self._clock = limit_bytes, ttl_s, clock
        self.bytes = 0
        self.evicted = 0  # since the last time that somebody asked and set it to 0
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._keys: dict[CacheScope, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> bytes | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.expires_at <= self._clock():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return entry.response

    def still(self, key: bytes, expires_at: float) -> Kept | None:
        """What ``put`` kept until then, if it is still there and was not replaced. It is used no
        later than before: nobody asked for it."""
        entry, now = self._entries.get(key), self._clock()
        if entry is None or entry.expires_at != expires_at or expires_at <= now:
            return None
        return Kept(entry.response, expires_at - now)

    def put(
        self, scope: CacheScope, key: bytes, response: bytes, remaining_s: float = math.inf
    ) -> float | None:
        """Keep the response, if it is not too large, and drop others for it. One that is not new
        is kept for ``remaining_s`` at most. Returns when it expires; None if it is not kept."""
        ttl_s = min(self._ttl_s, remaining_s)
        if _size(response) > self.limit_bytes // LARGEST_SHARE or ttl_s <= 0:
            return None
        if key in self._entries:
            self._drop(key)
        expires_at = self._clock() + ttl_s
        self._entries[key] = _Entry(scope, response, expires_at)
        self._keys.setdefault(scope, set()).add(key)
        self.bytes += _size(response)
        while self.bytes > self.limit_bytes:
            self._drop(next(iter(self._entries)))
            self.evicted += 1
        return expires_at

    def keep_only(self, is_served: Container[tuple[str, str, str]]) -> None:
        """Drop what belongs to a (model, version, revision) that is not among these."""
        for scope in [scope for scope in self._keys if scope[1:] not in is_served]:
            for key in list(self._keys[scope]):
                self._drop(key)

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key)
        self.bytes -= _size(entry.response)
        keys = self._keys[entry.scope]
        keys.discard(key)
        if not keys:
            del self._keys[entry.scope]


def _size(response: bytes) -> int:
    return len(response) + ENTRY_BYTES
