"""Replicas from DNS, asked from a real DNS server on loopback."""

import asyncio
import logging
import time

import dns.rcode
import pytest

from gateway.errors import NoCapacity
from gateway.upstream import replica_sources, replicas
from gateway.upstream.balancing import Health
from gateway.upstream.dns_lookup import DnsResolver
from gateway.upstream.replica_sources import ReplicaSources, Resolved
from gateway.upstream.replicas import ReplicaPool
from modelspec.address import lookup_of
from tests.dns_server import dns_server
from tests.gateway.upstream.test_replicas import Connection

NAME, SERVICE = "triton.example", "_grpc._tcp.triton.example"


@pytest.fixture
def server():
    with dns_server() as server:
        yield server


@pytest.fixture
def sources(server, monkeypatch):
    """Of a pool without replicas; every list is looked up again at once."""
    monkeypatch.setattr(replica_sources, "SHORTEST_TTL_S", 0.0)
    monkeypatch.setattr(replica_sources, "RETRY_S", 0.0)
    server.ttl_s = 0
    return ReplicaSources(ReplicaPool(Connection, 2), lambda: DnsResolver(server.address))


def _addresses(sources):
    return [replica.address for replica in sources._pool.replicas if not replica.is_leaving]


async def _resolved(server, entry):
    return await DnsResolver(server.address).resolve(lookup_of(entry))


async def test_every_address_of_one_family_is_a_replica_ipv6_in_brackets(server):
    server.records = {
        (NAME, "A"): ["10.0.0.7", "10.0.0.5"],
        (NAME, "AAAA"): ["2001:db8::7", "2001:db8::5"],
    }
    server.ttl_s = 17
    resolved = await _resolved(server, f"dns:{NAME}:8001/8000")
    assert resolved == (("10.0.0.5:8001/8000", "10.0.0.7:8001/8000"), 17, "")
    del server.records[NAME, "A"]
    resolved = await _resolved(server, f"dns:{NAME}:8001/8000")
    assert resolved == (("[2001:db8::5]:8001/8000", "[2001:db8::7]:8001/8000"), 17, "")


async def test_what_no_server_can_have_is_no_address(server):
    server.records = {
        (NAME, "A"): ["0.0.0.0", "224.0.0.1", "10.0.0.5"],  # noqa: S104 - an answer
        (NAME, "AAAA"): ["::", "ff02::1"],
    }
    assert (await _resolved(server, f"dns:{NAME}:8001")).addresses == ("10.0.0.5:8001",)
    server.records[NAME, "A"] = ["0.0.0.0"]  # noqa: S104 - an answer
    assert await _resolved(server, f"dns:{NAME}:8001") == ((), 0.0, "the name has no address")


async def test_more_addresses_than_a_datagram_holds_come_over_tcp(server):
    server.records = {(NAME, "A"): [f"10.0.1.{number}" for number in range(200)]}
    resolved = await _resolved(server, f"dns:{NAME}:8001")
    assert len(resolved.addresses) == 200
    assert server.over_tcp == 1


async def test_srv_takes_the_lowest_priority_that_has_targets_with_their_ports(server):
    server.records = {
        (SERVICE, "SRV"): [
            "0 5 8001 gone.example.",
            "0 5 0 a.example.",
            "10 1 8011 a.example.",
            "10 99 8021 b.example.",
            "20 1 8031 spare.example.",
        ],
        ("a.example", "A"): ["10.0.0.1"],
        ("b.example", "AAAA"): ["2001:db8::2"],
        ("spare.example", "A"): ["10.0.0.3"],
    }
    resolved = await _resolved(server, f"srv:{SERVICE}")
    assert resolved.addresses == ("10.0.0.1:8011", "[2001:db8::2]:8021")
    for name in ("a.example", "b.example"):
        server.records = {key: texts for key, texts in server.records.items() if key[0] != name}
    assert (await _resolved(server, f"srv:{SERVICE}/8000")).addresses == ("10.0.0.3:8031/8000",)


async def test_a_target_whose_server_fails_keeps_its_address_and_one_that_is_gone_does_not(server):
    resolver, lookup = DnsResolver(server.address), lookup_of(f"srv:{SERVICE}")
    server.records = {
        (SERVICE, "SRV"): ["0 0 8001 a.example.", "0 0 8001 b.example.", "0 0 8001 c.example."],
        ("a.example", "A"): ["10.0.0.1"],
        ("b.example", "A"): ["10.0.0.2"],
        ("c.example", "A"): ["10.0.0.3"],
    }
    every = ("10.0.0.1:8001", "10.0.0.2:8001", "10.0.0.3:8001")
    assert (await resolver.resolve(lookup)).addresses == every
    server.failing = {("a.example", "A"): dns.rcode.SERVFAIL}
    del server.records["b.example", "A"]
    assert (await resolver.resolve(lookup)).addresses == ("10.0.0.1:8001", "10.0.0.3:8001")


async def test_a_service_without_targets_is_a_fault(server):
    server.records = {(SERVICE, "SRV"): ["0 0 0 ."]}
    resolved = await _resolved(server, f"srv:{SERVICE}")
    assert resolved == ((), 0.0, "no target of the SRV records has an address")
    server.records = {(SERVICE, "A"): ["10.0.0.1"]}
    assert (await _resolved(server, f"srv:{SERVICE}")).fault == "the name has no SRV record"


async def test_the_family_that_is_used_keeps_its_addresses_when_it_fails(server):
    resolver, lookup = DnsResolver(server.address), lookup_of(f"dns:{NAME}:8001")
    server.records = {(NAME, "A"): ["10.0.0.1"], (NAME, "AAAA"): ["2001:db8::1"]}
    server.failing = {(NAME, "AAAA"): dns.rcode.SERVFAIL}
    assert (await resolver.resolve(lookup)).addresses == ("10.0.0.1:8001",)
    server.failing = {(NAME, "A"): dns.rcode.SERVFAIL}
    failed = await resolver.resolve(lookup)
    assert failed == ((), 0.0, "no DNS server has an answer (SERVFAIL)")  # the last list stays
    never_had = DnsResolver(server.address)
    assert (await never_had.resolve(lookup)).addresses == ("[2001:db8::1]:8001",)
    server.failing = {}
    del server.records[NAME, "A"]
    assert (await resolver.resolve(lookup)).addresses == ("[2001:db8::1]:8001",)


async def test_the_pool_follows_the_name_and_keeps_what_stays(server, sources):
    server.records = {(NAME, "A"): ["10.0.0.1", "10.0.0.2"]}
    sources.apply(["10.9.9.9:8001", f"dns:{NAME}:8001"])
    assert _addresses(sources) == ["10.9.9.9:8001"]
    await sources.refresh(10)
    assert _addresses(sources) == ["10.9.9.9:8001", "10.0.0.1:8001", "10.0.0.2:8001"]
    kept = sources._pool.replicas[2]
    server.records[NAME, "A"] = ["10.0.0.3", "10.0.0.2"]
    await sources.refresh(10)
    assert _addresses(sources) == ["10.9.9.9:8001", "10.0.0.2:8001", "10.0.0.3:8001"]
    assert sources._pool.replicas[1] is kept
    await sources._pool.close()


def _servfail(server):
    server.rcode = dns.rcode.SERVFAIL


def _nxdomain(server):
    server.records = {}


def _empty(server):
    server.records = {(NAME, "TXT"): ['"nothing"']}


def _silent(server):
    server.is_silent = True


@pytest.mark.parametrize(
    ("fail", "reason"),
    [
        (_servfail, "no DNS server has an answer (SERVFAIL)"),
        (_nxdomain, "the name does not exist (NXDOMAIN)"),
        (_empty, "the name has no address"),
        (_silent, "no DNS server answered in time"),
    ],
    ids=["servfail", "nxdomain", "empty", "silent"],
)
async def test_what_fails_keeps_the_last_good_list_and_says_so_once(
    server, sources, caplog, monkeypatch, fail, reason
):
    server.records = {(NAME, "A"): ["10.0.0.1"]}
    sources.apply([f"dns:{NAME}:8001"])
    await sources.refresh(10)
    caplog.set_level(logging.INFO, "gateway")
    caplog.clear()
    fail(server)
    with monkeypatch.context() as patch:  # the silence alone is to be short
        patch.setattr("gateway.upstream.dns_lookup.LOOKUP_S", 0.4 if server.is_silent else 10)
        for _ in range(3):
            await sources.refresh(10)
    assert _addresses(sources) == ["10.0.0.1:8001"]
    assert (sources.sources[0].fault, sources.fault()) == (reason, "")
    kept = "those last known stay in use: 10.0.0.1:8001"
    # Of the gateway: another test's exporter of traces may complain meanwhile.
    said = [record.getMessage() for record in caplog.records if record.name == "gateway"]
    assert said == [f"dns:{NAME}:8001: {reason}; {kept}"]
    server.rcode, server.is_silent = None, False
    server.records = {(NAME, "A"): ["10.0.0.2"]}
    await sources.refresh(10)
    assert _addresses(sources) == ["10.0.0.2:8001"]
    assert sources.sources[0].fault == ""


async def test_without_a_first_list_the_reason_is_given(server, sources):
    sources.apply([f"dns:{NAME}:8001"])
    assert sources.fault() == "has not been looked up yet"
    await sources.refresh(10)
    assert sources.fault() == "the name does not exist (NXDOMAIN)"
    assert _addresses(sources) == []


async def test_a_new_name_replaces_addresses_only_once_it_was_looked_up(server, sources):
    sources.apply(["10.9.9.9:8001"])
    sources.apply([f"dns:{NAME}:8001"])
    await sources.refresh(10)
    assert _addresses(sources) == ["10.9.9.9:8001"]
    server.records = {(NAME, "A"): ["10.0.0.1"]}
    await sources.refresh(10)
    assert _addresses(sources) == ["10.0.0.1:8001"]


async def test_while_a_name_is_unknown_what_the_others_drop_is_removed(server, sources):
    server.records = {(NAME, "A"): ["10.0.0.1", "10.0.0.2"]}
    followed, unknown = f"dns:{NAME}:8001", "dns:unknown.example:8001"
    sources.apply(["10.0.0.1:8001", "10.9.9.9:8001"])
    sources.apply([followed, unknown])
    await sources.refresh(10)
    assert _addresses(sources) == ["10.0.0.1:8001", "10.0.0.2:8001", "10.9.9.9:8001"]
    for number in (2, 3, 4):
        server.records[NAME, "A"] = [f"10.0.0.{number}", f"10.0.0.{number + 1}"]
        await sources.refresh(10)
    assert _addresses(sources) == ["10.0.0.4:8001", "10.0.0.5:8001", "10.9.9.9:8001"]
    sources.apply([followed, unknown])  # gateway.toml was saved again
    server.records = {
        (NAME, "A"): ["10.0.0.5", "10.0.0.6"],
        ("unknown.example", "A"): ["10.0.0.7"],
    }
    await sources.refresh(10)
    assert _addresses(sources) == ["10.0.0.5:8001", "10.0.0.6:8001", "10.0.0.7:8001"]


async def test_a_slow_name_delays_no_other_and_is_asked_once_at_a_time():
    started = []

    class Resolver:
        async def resolve(self, lookup):
            started.append(lookup.name)
            if lookup.name == "slow.example":
                await is_over.wait()
            return Resolved((f"{lookup.name}:{len(started)}",))

    is_over = asyncio.Event()
    pool = ReplicaPool(Connection, 2)
    sources = ReplicaSources(pool, Resolver)
    sources.apply(["dns:slow.example:1", "dns:quick.example:1"])
    for _ in range(2):
        await asyncio.wait_for(sources.refresh(0.0), 10)
        await asyncio.wait_for(sources.refresh(0.05), 10)
        assert _addresses(sources) == [f"quick.example:{len(started)}"]
        sources.sources[1].due = 0.0
    assert started == ["slow.example", "quick.example", "quick.example"]
    is_over.set()
    await sources.refresh(10)
    assert _addresses(sources)[0].startswith("slow.example")
    is_over.clear()
    sources.sources[0].due = 0.0
    await sources.refresh(0.05)
    await asyncio.wait_for(sources.close(), 10)
    await pool.close()


async def test_what_a_lookup_raises_is_raised_and_does_not_stop_the_others():
    class Resolver:
        async def resolve(self, lookup):
            if lookup.name == "broken.example":
                raise RuntimeError("a fault of ours")
            return Resolved(("10.0.0.1:1",))

    sources = ReplicaSources(ReplicaPool(Connection, 2), Resolver)
    sources.apply(["dns:broken.example:1", "dns:sound.example:1"])
    for _ in range(2):
        with pytest.raises(RuntimeError, match="a fault of ours"):
            await sources.refresh(10)
    assert _addresses(sources) == ["10.0.0.1:1"]
    await sources._pool.close()


@pytest.mark.parametrize(("ttl_s", "wait_s"), [(0, 1), (12, 12), (3600, 30)])
async def test_a_list_is_used_for_its_ttl_within_bounds(server, ttl_s, wait_s):
    server.records, server.ttl_s = {(NAME, "A"): ["10.0.0.1"]}, ttl_s
    sources = ReplicaSources(ReplicaPool(Connection, 2), lambda: DnsResolver(server.address))
    sources.apply([f"dns:{NAME}:8001"])
    now = asyncio.get_running_loop().time()
    await sources.refresh(10)
    assert sources.sources[0].due - now == pytest.approx(wait_s, abs=1)
    asked = len(server.asked)
    await sources.refresh(10)
    assert len(server.asked) == asked
    await sources._pool.close()


async def test_a_new_replica_gets_requests_once_it_has_listed_its_models():
    pool = ReplicaPool(Connection, 2)
    pool.apply(["a:1"])
    assert pool.replicas[0].health is Health.UP
    pool.apply(["a:1", "b:1"])
    assert pool.replicas[1].reason == "has not listed its models yet"
    assert {pool.permit("m").replica.address for _ in range(20)} == {"a:1"}
    await pool.check()
    assert pool.replicas[1].versions == {"m": ("1",)}
    assert {pool.permit("m").replica.address for _ in range(200)} == {"a:1", "b:1"}
    pool.apply(["a:1", "b:1", "d:1"])
    pool.replicas[0].upstream.connection = pool.replicas[1].upstream.connection = Health.DOWN
    pool.apply(["d:1"])  # which has not listed its models, and is all that there is now
    assert pool.permit("m").replica.address == "d:1"
    await pool.close()


async def test_a_list_that_keeps_none_replaces_what_is_up_once_its_models_are_served():
    pool = ReplicaPool(Connection, 2)
    pool.apply(["a:1", "b:1"])
    await pool.check()
    for replica in pool.replicas:
        replica.index_read({"m": ("1",), "n": ("1",)})
    pool.apply(["c:1", "d:1"])
    assert {pool.permit("m").replica.address for _ in range(50)} == {"a:1", "b:1"}
    new = pool.replicas[0].upstream
    pool.replicas[1].upstream.live = NoCapacity("nothing is there")
    new.index = {"m": ("1",)}  # n is still being loaded
    await pool.check()
    assert {pool.permit("n").replica.address for _ in range(50)} == {"a:1", "b:1"}
    pool.replicas[3].upstream.connection = Health.DOWN  # it ends before it is replaced
    pool.apply(["c:1", "d:1", "e:1"])
    assert [replica.address for replica in pool.replicas] == ["c:1", "d:1", "e:1", "a:1"]
    pool.replicas[2].upstream.index = {"m": ("1",), "n": ("1",)}
    await pool.check()
    assert [replica.address for replica in pool.replicas] == ["c:1", "d:1", "e:1"]
    await pool.close()


async def test_removed_replicas_stay_until_one_that_is_kept_and_was_restarted_has_its_models():
    pool = ReplicaPool(Connection, 2)
    pool.apply(["a:1", "b:1"])
    await pool.check()
    kept, leaving = pool.replicas
    kept.index_read({})  # it is up, and loads its models
    leaving.index_read({"m": ("1",)})
    pool.apply(["a:1"])
    assert {pool.permit("m").replica.address for _ in range(20)} == {"b:1"}
    await pool.check()
    assert pool.replicas == [kept, leaving]
    kept.index_read({"m": ("1",)})
    await pool.check()
    assert pool.replicas == [kept]
    assert pool.permit("m").replica.address == "a:1"
    await pool.close()


async def test_removed_replicas_stay_as_long_as_no_new_one_is_up(monkeypatch):
    pool = ReplicaPool(Connection, 2)
    pool.apply(["a:1", "b:1"])
    await pool.check()
    now = [time.monotonic()]
    monkeypatch.setattr(replicas.time, "monotonic", lambda: now[0])
    pool.apply(["c:1", "d:1"])
    new = pool.replicas[0].upstream
    new.live = pool.replicas[1].upstream.live = NoCapacity("it is starting")
    for _ in range(3):
        now[0] += replicas.LEAVING_S + 1
        await pool.check()
        assert {pool.permit("m").replica.address for _ in range(50)} == {"a:1", "b:1"}
    new.live, new.index = True, {"m": ("1",)}
    for replica in pool.replicas[2:]:
        replica.index_read({"m": ("1",), "n": ("1",)})  # the new one never loads n
    now[0] += replicas.LEAVING_S - 1
    await pool.check()
    assert len(pool.replicas) == 4
    now[0] += 2
    await pool.check()
    assert [replica.address for replica in pool.replicas] == ["c:1", "d:1"]
    await pool.close()


async def test_removed_replicas_do_not_wait_for_ever_and_one_that_is_listed_again_stays(
    monkeypatch,
):
    pool = ReplicaPool(Connection, 2)
    pool.apply(["a:1", "b:1"])
    monkeypatch.setattr(replicas, "LEAVING_S", 0.0)
    pool.apply(["c:1"])
    pool.replicas[0].upstream.live = NoCapacity("nothing is there")
    pool.apply(["c:1", "b:1"])
    await pool.check()
    assert [replica.address for replica in pool.replicas] == ["c:1", "b:1"]
    assert pool.permit("m").replica.address == "b:1"
    await pool.close()
