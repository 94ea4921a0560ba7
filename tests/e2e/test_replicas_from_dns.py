"""Real Tritons behind a name in DNS come and go under load of REST and gRPC: no request fails."""

import contextlib
import sys
import time
from collections.abc import Iterator

import dns.rcode
import httpx
import numpy as np
import pytest
from tritonclient import grpc as triton_grpc

from tests.back_to_back import PAUSE_S, back_to_back
from tests.dns_server import DnsServer, dns_server
from tests.e2e.grpc_models import ONE, PLAIN
from tests.e2e.pair import Pair, Running
from tests.running import wait_until

SERVICE = "_grpc._tcp.triton.example"


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Iterator[Pair]:
    with Pair(tmp_path_factory.mktemp("dns"), {"plain": (PLAIN, ONE)}) as replicas:
        yield replicas


@pytest.fixture
def server() -> Iterator[DnsServer]:
    with dns_server() as server:
        server.records = {("one.example", "A"): ["127.0.0.1"]}
        yield server


@contextlib.contextmanager
def _gateway(pair: Pair, server: DnsServer, *replicas: str) -> Iterator[Running]:
    variables = {"TIDEGATE_DNS_SERVER": server.address, "TIDEGATE_PIPELINES": "plain"}
    with Running(pair, replicas, **variables) as gateway:
        wait_until(gateway.listens, 30, "the gateway listens")
        yield gateway


def _list(server: DnsServer, pair: Pair, *indices: int) -> None:
    ports = [pair.options[index].ports.grpc for index in indices]
    server.records[SERVICE, "SRV"] = [f"0 0 {port} one.example." for port in ports]


def _uses(gateway: Running, pair: Pair, *indices: int) -> bool:
    """Whether exactly these are listed, and all are asked."""
    replicas = gateway.replicas()
    addresses = {replica["address"] for replica in replicas if replica["health"] == "up"}
    return addresses == {pair.addresses[index] for index in indices} and len(replicas) == len(
        indices
    )


def _source(gateway: Running) -> dict:
    (source,) = gateway.admin("replicas")["sources"]
    return source


def _over_grpc(gateway: Running, client: triton_grpc.InferenceServerClient) -> int:
    tensor = triton_grpc.InferInput("x", [1], "FP32")
    tensor.set_data_from_numpy(np.ones(1, np.float32))
    client.infer("plain", [tensor], headers=gateway.metadata())
    return 200


def test_none_fails_while_servers_come_and_go_under_load(pair, server, capsys):
    _list(server, pair, 0, 1)
    with _gateway(pair, server, f"srv:{SERVICE}") as gateway:
        wait_until(gateway.is_ready, 30, "the gateway is ready")
        wait_until(lambda: _uses(gateway, pair, 0, 1), 30, "both are asked")

        def connect() -> httpx.Client:
            return httpx.Client(base_url=gateway.client.base_url, timeout=20)

        def connect_grpc() -> triton_grpc.InferenceServerClient:
            return triton_grpc.InferenceServerClient(gateway.grpc_address)

        with (
            back_to_back(
                lambda client: gateway.ask(client=client).status_code, connect, 2, PAUSE_S
            ) as rest,
            back_to_back(lambda client: _over_grpc(gateway, client), connect_grpc, 1) as grpc,
        ):
            for leaving, staying in ((1, 0), (0, 1), (1, 0)):
                _list(server, pair, staying)
                wait_until(lambda staying=staying: _uses(gateway, pair, staying), 30, "it left")
                pair.stop(leaving)
                rest.more(50)
                # A server is listed before it has started, and before it has its models.
                _list(server, pair, 0, 1)
                time.sleep(2)
                pair.start(leaving)
                wait_until(lambda: _uses(gateway, pair, 0, 1), 30, "it is back")
                grpc.more(50)
            _list(server, pair, 0)
            wait_until(lambda: _uses(gateway, pair, 0), 30, "one is left")
            pair.stop(1)
            _list(server, pair, 1)  # nothing of the last list, and it has not started
            time.sleep(2)
            rest.more(50)
            pair.start(1)
            wait_until(lambda: _uses(gateway, pair, 1), 30, "it has replaced the other")
            grpc.more(50)
            _list(server, pair, 0, 1)
            wait_until(lambda: _uses(gateway, pair, 0, 1), 30, "both are asked again")
            server.rcode = dns.rcode.SERVFAIL
            wait_until(lambda: "SERVFAIL" in _source(gateway)["fault"], 30, "its DNS fails")
            rest.more(50)
            assert _uses(gateway, pair, 0, 1) and gateway.is_ready()
        log = gateway.log.read_text()
    assert log.count("no DNS server has an answer (SERVFAIL); those last known stay in use") == 1
    sent = rest.sent + grpc.sent
    failed = sent - rest.counts[200] - grpc.counts[200]
    with capsys.disabled():
        sys.stdout.write(f"\nreplicas from DNS: {sent} requests, {failed} failed\n")
    assert failed == 0, (rest.counts, grpc.counts)


def test_at_the_start_without_an_answer_it_is_not_ready_and_says_why(pair, server):
    with _gateway(pair, server, f"dns:one.example:{pair.options[0].ports.grpc}") as gateway:
        wait_until(gateway.is_ready, 30, "an address record is enough")
        assert _uses(gateway, pair, 0)
    server.records = {}
    with _gateway(pair, server, f"srv:{SERVICE}") as gateway:
        reason = "no Triton server is known: the name does not exist (NXDOMAIN)"
        log = f"srv:{SERVICE}: the name does not exist (NXDOMAIN)"
        wait_until(lambda: log in gateway.log.read_text(), 30, "it is logged")
        response = gateway.get("/readyz")
        assert response.status_code == 503
        assert response.json()["pipelines"]["tidegate:replicas"] == reason
        assert gateway.ask().status_code == 503
        _list(server, pair, 1)
        server.records["one.example", "A"] = ["127.0.0.1"]
        wait_until(gateway.is_ready, 30, "it is ready once the name is there")
        assert gateway.ask().status_code == 200
        assert gateway.log.read_text().count(log) == 1
