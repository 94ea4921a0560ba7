"""Replicas by their DNS name: A and AAAA records (a headless service of Kubernetes answers with the
address of every ready pod), or SRV records, which have the ports too.

Imported when an entry of the list needs it.
"""

import asyncio
from ipaddress import ip_address
from typing import NamedTuple

import dns.asyncresolver
import dns.exception
import dns.rcode
import dns.resolver
from dns.rdtypes.IN.SRV import SRV

from gateway.upstream.replica_sources import Resolved
from modelspec.address import Lookup, host_and_port, joined

TRY_S = 1.0  # for one question to one server
LOOKUP_S = 3.0  # for all tries of one question
TOTAL_S = 9.0  # for all questions: SRV records may have many targets
AT_ONCE = 16  # targets of SRV records that are looked up concurrently
_FAMILIES = ("A", "AAAA")
_LATE = "no DNS server answered in time"


class _Failed(Exception):
    """A question that was not answered, or not usefully; the message says why, always in the same
    words for the same reason."""


class _Gone(_Failed):
    """The name does not exist."""


class _Hosts(NamedTuple):
    """The addresses of a name; with a ``fault``, those that it had when it was last answered."""

    addresses: tuple[str, ...]
    ttl_s: float
    fault: str = ""


class DnsResolver:
    """Looks one name up, with the servers of /etc/resolv.conf or with one server alone."""

    def __init__(self, server: str = "") -> None:
        """``server``: IP:PORT, or '' for those of /etc/resolv.conf."""
        self._server = server
        # The last good addresses of the name, or of each target, by the type of record: many
        # servers answer one type and fail with the other.
        self._known: dict[tuple[str, str], tuple[str, ...]] = {}

    async def resolve(self, lookup: Lookup) -> Resolved:
        try:
            async with asyncio.timeout(TOTAL_S):
                return await self._resolve(lookup)
        except TimeoutError:
            return Resolved((), fault=_LATE)

    async def _resolve(self, lookup: Lookup) -> Resolved:
        try:
            # Made anew each time: /etc/resolv.conf may have changed.
            resolver = self._resolver()
            if lookup.kind == "srv":
                return await self._resolve_srv(resolver, lookup)
        except _Failed as error:
            return Resolved((), fault=str(error))
        hosts = await self._hosts(resolver, lookup.name)
        if hosts.fault or not hosts.addresses:
            return Resolved((), fault=hosts.fault or "the name has no address")
        addresses = [_replica(host, lookup.grpc_port, lookup.http_port) for host in hosts.addresses]
        return Resolved(tuple(sorted(addresses)), hosts.ttl_s)

    def _resolver(self) -> dns.asyncresolver.Resolver:
        try:
            resolver = dns.asyncresolver.Resolver(configure=not self._server)
        except (dns.exception.DNSException, OSError):
            raise _Failed("no DNS server is configured in /etc/resolv.conf") from None
        if self._server:
            host, resolver.port = host_and_port(self._server)
            resolver.nameservers = [host]
        resolver.timeout, resolver.lifetime = TRY_S, LOOKUP_S
        resolver.use_search_by_default = True
        return resolver

    async def _resolve_srv(self, resolver: dns.asyncresolver.Resolver, lookup: Lookup) -> Resolved:
        """The targets of the lowest priority that has any with an address. Their weights are
        ignored: what a replica has to do decides how much it gets."""
        answer = await _ask(resolver, lookup.name, "SRV")
        if answer is None:
            raise _Failed("the name has no SRV record")
        records = [record for record in answer if isinstance(record, SRV)]
        listed = {record.target.to_text() for record in records}
        self._known = {key: known for key, known in self._known.items() if key[0] in listed}
        fault = ""
        for priority in sorted({record.priority for record in records}):
            targets = {
                (record.target.to_text(), record.port)
                for record in records
                if record.priority == priority and record.port and record.target.to_text() != "."
            }
            names = sorted({name for name, _ in targets})
            hosts = dict(zip(names, await self._hosts_of(resolver, names), strict=True))
            addresses = {
                _replica(address, port, lookup.http_port)
                for name, port in targets
                for address in hosts[name].addresses
            }
            fault = fault or next((host.fault for host in hosts.values() if host.fault), "")
            if addresses:
                ttls = [host.ttl_s for host in hosts.values() if host.addresses and not host.fault]
                ttl_s = min([answer.chaining_result.minimum_ttl, *ttls])
                return Resolved(tuple(sorted(addresses)), ttl_s)
        raise _Failed(f"no target of the SRV records has an address{fault and f' ({fault})'}")

    async def _hosts_of(
        self, resolver: dns.asyncresolver.Resolver, names: list[str]
    ) -> list[_Hosts]:
        """The addresses of each name."""
        turns = asyncio.Semaphore(AT_ONCE)

        async def hosts(name: str) -> _Hosts:
            async with turns:
                return await self._hosts(resolver, name)

        return await asyncio.gather(*map(hosts, names))

    async def _hosts(self, resolver: dns.asyncresolver.Resolver, name: str) -> _Hosts:
        """Its IPv4 addresses or, if it has none, the IPv6 ones: a host that has both is one
        replica. A type of record that cannot be asked for keeps the addresses that it had, and the
        name is then at fault."""
        fault = ""
        answers = await asyncio.gather(*(_answer(resolver, name, family) for family in _FAMILIES))
        for family, answer in zip(_FAMILIES, answers, strict=True):
            key, failure, ttl_s = (name, family), "", 0.0
            if answer is None or isinstance(answer, _Gone):
                self._known.pop(key, None)
            elif not isinstance(answer, _Failed):
                self._known[key] = tuple(
                    filter(_is_usable, (record.to_text() for record in answer))
                )
                ttl_s = answer.chaining_result.minimum_ttl
            if isinstance(answer, _Failed):
                fault = failure = str(answer)
            if known := self._known.get(key):
                return _Hosts(known, ttl_s, failure)
        return _Hosts((), 0.0, fault)


def _is_usable(address: str) -> bool:
    """Whether one server can have it: 0.0.0.0 is what filters of DNS answer for blocked names."""
    ip = ip_address(address)
    return not (ip.is_unspecified or ip.is_multicast)


async def _answer(
    resolver: dns.asyncresolver.Resolver, name: str, record_type: str
) -> "dns.resolver.Answer | _Failed | None":
    """As ``_ask``, with the failure returned."""
    try:
        return await _ask(resolver, name, record_type)
    except _Failed as error:
        return error


async def _ask(
    resolver: dns.asyncresolver.Resolver, name: str, record_type: str
) -> dns.resolver.Answer | None:
    """The answer, or None if the name has no record of that type."""
    try:
        return await resolver.resolve(name, record_type)
    except dns.resolver.NoAnswer:
        return None
    except dns.resolver.NXDOMAIN:
        raise _Gone("the name does not exist (NXDOMAIN)") from None
    except dns.resolver.LifetimeTimeout:
        reason = _LATE
    except dns.resolver.NoNameservers as error:
        reason = f"no DNS server has an answer ({_last_code(error)})"
    except (dns.exception.DNSException, OSError) as error:
        reason = f"the name cannot be looked up ({type(error).__name__})"
    raise _Failed(reason) from None


def _last_code(error: dns.resolver.NoNameservers) -> str:
    """What the last server that was asked said: SERVFAIL, REFUSED, ..."""
    for *_, problem, response in reversed(error.kwargs.get("errors", [])):
        if response is not None and response.rcode():
            return dns.rcode.to_text(response.rcode())
        return type(problem).__name__ if isinstance(problem, Exception) else str(problem)
    return "none is reachable"


def _replica(host: str, grpc_port: int, http_port: int) -> str:
    address = joined(host, grpc_port)
    return f"{address}/{http_port}" if http_port else address
