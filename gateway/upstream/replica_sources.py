"""Where the list of replicas comes from: addresses as they are, and DNS names that are looked up
again and again.

A lookup that fails never empties the list: the last good one stays in use, since a DNS server that
is down says nothing about the Tritons.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from gateway.upstream.replicas import ReplicaPool
from modelspec.address import Lookup, lookup_of

log = logging.getLogger("gateway")
LOOK_S = 0.25  # how often ``ReplicaSources.refresh`` should be called
# A list is used for as long as its records' TTL says, within these bounds, in seconds.
SHORTEST_TTL_S, LONGEST_TTL_S = 1.0, 30.0
RETRY_S = 1.0  # after a lookup that failed


class Resolved(NamedTuple):
    """The outcome of one lookup. ``addresses`` are HOST:GRPC_PORT, or HOST:GRPC_PORT/HTTP_PORT, in
    a fixed order; () if there is a ``fault``."""

    addresses: tuple[str, ...]
    ttl_s: float = 0.0
    fault: str = ""


class Resolver(Protocol):
    async def resolve(self, lookup: Lookup) -> Resolved:
        """Never raises for what a DNS server may answer, or for none that answers."""


class Source:
    """One ``dns:`` or ``srv:`` entry of the list."""

    def __init__(self, entry: str, lookup: Lookup, resolver: Resolver) -> None:
        self.entry, self._lookup, self._resolver = entry, lookup, resolver
        self.addresses: tuple[str, ...] = ()  # the last good list
        self.fault = "has not been looked up yet"  # '' after a lookup that succeeded
        self.due = 0.0  # monotonic seconds

    async def look_up(self) -> None:
        """Look it up, and log what has changed."""
        resolved = await self._resolver.resolve(self._lookup)
        if resolved.fault:
            if resolved.fault != self.fault:
                kept = f"; those last known stay in use: {', '.join(self.addresses)}"
                log.warning("%s: %s%s", self.entry, resolved.fault, kept if self.addresses else "")
            self.fault, wait_s = resolved.fault, RETRY_S
        else:
            if self.fault or resolved.addresses != self.addresses:
                log.info("%s: the replicas are %s", self.entry, ", ".join(resolved.addresses))
            self.addresses, self.fault = resolved.addresses, ""
            wait_s = min(max(resolved.ttl_s, SHORTEST_TTL_S), LONGEST_TTL_S)
        self.due = time.monotonic() + wait_s


class ReplicaSources:
    """Keeps the pool's replicas to what the entries say now."""

    def __init__(self, pool: ReplicaPool, connect: Callable[[], Resolver]) -> None:
        """``connect`` makes a resolver for one name."""
        self._pool, self._connect = pool, connect
        self._entries: tuple[str, ...] = ()
        self._sources: dict[str, Source] = {}
        # What the entries may replace, of the replicas before them: it stays until each name has
        # been looked up, unless an entry lists it, which then decides whether it stays.
        self._replaced: list[str] = []
        self._applied: list[str] = []
        self._under_way: dict[Source, asyncio.Task[None]] = {}

    @property
    def sources(self) -> list[Source]:
        return list(self._sources.values())

    def apply(self, entries: Sequence[str]) -> None:
        """Follow these entries from now on (see ``modelspec.address.require_replicas``)."""
        self._entries = tuple(dict.fromkeys(entries))
        self._sources = {
            entry: self._sources.get(entry) or Source(entry, lookup, self._connect())
            for entry in self._entries
            if (lookup := lookup_of(entry))
        }
        self._replaced = self._applied
        self._apply_addresses()

    async def refresh(self, wait_s: float = LOOK_S) -> None:
        """Begin to look up what is due, and wait for what is under way, for ``wait_s`` at most. The
        pool follows each name as soon as it has been looked up: a slow one delays no other. Call it
        every LOOK_S. Raises what an earlier lookup has raised."""
        now = time.monotonic()
        for source in self._sources.values():
            if source not in self._under_way and now >= source.due:
                self._under_way[source] = asyncio.create_task(self._follow(source))
        if self._under_way:
            await asyncio.wait(self._under_way.values(), timeout=wait_s)
        ended = [source for source, task in self._under_way.items() if task.done()]
        for task in [self._under_way.pop(source) for source in ended]:
            task.result()

    async def _follow(self, source: Source) -> None:
        await source.look_up()
        if source in self._sources.values():  # else the list has changed meanwhile
            self._apply_addresses()

    async def close(self) -> None:
        """End the lookups that are under way."""
        for task in self._under_way.values():
            task.cancel()
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)

    def _apply_addresses(self) -> None:
        addresses: list[str] = []
        for entry in self._entries:
            source = self._sources.get(entry)
            addresses += source.addresses if source else [entry]
        if all(source.addresses for source in self._sources.values()):
            self._replaced = []
        self._replaced = [address for address in self._replaced if address not in addresses]
        addresses = list(dict.fromkeys([*addresses, *self._replaced]))
        if addresses != self._applied:
            self._applied = addresses
            self._pool.apply(addresses)

    def fault(self) -> str:
        """Why no replica is known, without the name (anybody may see it), or ''."""
        if self._pool.replicas:
            return ""
        return next((source.fault for source in self._sources.values() if source.fault), "")
