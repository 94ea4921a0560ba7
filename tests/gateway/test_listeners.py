"""The listeners besides HTTP: one whose server ends is noticed, restarted, and responds again."""

import asyncio
import collections
import socket
from dataclasses import replace

import grpc
import httpx
import pytest

from gateway.api.admin.listener import AdminListener
from gateway.api.grpc.server import GrpcServer
from gateway.background import readiness
from gateway.core import Gateway
from gateway.draining import DRAIN
from gateway.listening import listening_socket, peer_address
from gateway.settings import Settings
from serving.triton.ports import free_ports


@pytest.fixture
async def gateway(tmp_path, monkeypatch):
    monkeypatch.setattr("gateway.supervision.CHECK_S", 0.05)
    settings = Settings(
        replicas=("127.0.0.1:1",),
        keys_file=tmp_path / "keys.toml",
        pepper_file=tmp_path / "pepper",
        policy_file=tmp_path / "gateway.toml",
        state_folder=tmp_path,
    )
    gateway = Gateway(settings)
    gateway.counted = collections.Counter()
    monkeypatch.setattr(gateway.supervisor, "_count", lambda name: gateway.counted.update([name]))
    gateway.supervisor.open()
    await gateway.access_control.open()
    yield gateway
    await gateway.supervisor.close()
    await gateway.pool.close()
    await gateway.access_control.close()


async def _until(condition, timeout_s=20):
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110 - nobody signals it
            await asyncio.sleep(0.05)


async def test_the_operators_listener(gateway):
    (port,) = free_ports(1)
    listener = AdminListener(gateway, port)
    await listener.start()
    gateway.supervisor.run("admin", listener.serve)

    async def answers():
        try:
            async with httpx.AsyncClient() as client:
                return (await client.get(f"http://127.0.0.1:{port}/healthz")).status_code == 200
        except httpx.TransportError:
            return False

    await _until(answers)
    listener._server.should_exit = True
    await _until(lambda: asyncio.sleep(0, gateway.counted["admin"] == 1))
    await _until(answers)
    assert gateway.supervisor.faults() == {}
    await gateway.supervisor.close()
    await listener.stop()


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_worker_that_drains_keeps_the_operators_port_from_no_other_gateway(
    gateway, workers
):
    (port,) = free_ports(1)
    gateway.settings = replace(gateway.settings, workers=workers)
    before = list(DRAIN.closers)  # of what other tests have left
    listener = AdminListener(gateway, port)
    await listener.start()
    gateway.supervisor.run("admin", listener.serve)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
        assert (await client.get("/healthz")).status_code == 200
        for close in DRAIN.closers[len(before) :]:
            await close(10.0)
        assert (await client.get("/healthz")).status_code == 200  # on the same connection
        if workers == 1:
            with pytest.raises(OSError):
                listening_socket("127.0.0.1", port)
        else:
            listening_socket("127.0.0.1", port).close()
    await gateway.supervisor.close()
    await listener.stop()
    assert DRAIN.closers == before


async def test_the_grpc_server(gateway):
    (port,) = free_ports(1)
    listener = GrpcServer(gateway, port)
    await listener.start()
    gateway.supervisor.run("grpc", listener.serve)

    async def answers():
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
            try:
                await call(b"", timeout=1)
            except grpc.aio.AioRpcError as error:
                return error.code() is grpc.StatusCode.UNAUTHENTICATED
        return False

    await _until(answers)
    await listener._server.stop(0)
    await _until(lambda: asyncio.sleep(0, gateway.counted["grpc"] == 1))
    await _until(answers)
    assert gateway.supervisor.faults() == {}
    await gateway.supervisor.close()
    await listener.stop(0)


@pytest.mark.parametrize(
    ("host", "reached"),
    [("::1", ["[::1]"]), ("::", ["[::1]", "127.0.0.1"]), ("localhost", ["127.0.0.1"])],
)
async def test_each_listener_takes_the_same_hosts(gateway, host, reached):
    admin_port, grpc_port = free_ports(2)
    gateway.settings = replace(gateway.settings, host=host)
    listeners = [AdminListener(gateway, admin_port), GrpcServer(gateway, grpc_port)]
    for listener in listeners:
        await listener.start()
    with listening_socket(host, 0) as main:
        main.listen()
        for address in reached:
            with socket.create_connection((address.strip("[]"), main.getsockname()[1]), timeout=20):
                pass
            async with httpx.AsyncClient() as client:
                response = await client.get(f"http://{address}:{admin_port}/healthz", timeout=20)
            assert response.status_code == 200
            async with grpc.aio.insecure_channel(f"{address}:{grpc_port}") as channel:
                await asyncio.wait_for(channel.channel_ready(), 20)
    for listener in listeners:
        await listener.stop()


def test_a_client_of_either_kind_is_known_by_its_own_address():
    assert str(peer_address("::ffff:10.0.0.5")) == "10.0.0.5"
    assert peer_address("::ffff:127.0.0.1").is_loopback
    assert str(peer_address("fe80::1")) == "fe80::1"


async def test_what_is_down_makes_the_gateway_unready(gateway, monkeypatch):
    down = readiness(gateway)
    assert set(down) == {"tidegate:replicas"}  # there is no Triton here
    audit = gateway.access_control._audit
    monkeypatch.setattr(audit, "fault", lambda: "cannot be written: No space left on device")
    fault = {"background:audit": "cannot be written: No space left on device"}
    assert readiness(gateway) == down | fault
