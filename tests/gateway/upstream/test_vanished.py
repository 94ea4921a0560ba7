"""A server that vanishes without a word, and another one at its address: what a machine that loses
power does, and a container that is started again with another address behind its name. The
connection is not closed, and nobody answers on it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from tritonclient.grpc import service_pb2

from gateway.errors import ReplicaLost
from gateway.upstream import server
from gateway.upstream.balancing import Health
from gateway.upstream.replicas import Replica
from gateway.upstream.server import Upstream
from gateway.upstream.vanished import VANISHED_S

KEEPALIVE_MS = 1000


class Triton(grpc.GenericRpcHandler):
    """Is live, lists one model, and never answers an inference."""

    def service(self, details):
        method = details.method.rpartition("/")[2]
        return grpc.unary_unary_rpc_method_handler(
            {"ServerLive": _live, "RepositoryIndex": _index, "ModelInfer": _infer}[method],
            request_deserializer=getattr(service_pb2, f"{method}Request").FromString,
            response_serializer=lambda response: response.SerializeToString(),
        )


async def _live(request, context):
    return service_pb2.ServerLiveResponse(live=True)


async def _index(request, context):
    index = service_pb2.RepositoryIndexResponse()
    index.models.add(name="m", version="1", state="READY")
    return index


async def _infer(request, context):
    await asyncio.Event().wait()


class Relay:
    """Passes bytes on to ``port``, until the other end of a connection vanishes."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._pumps: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def open(self) -> int:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader, writer) -> None:
        their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, their_writer]
        for source, target in ((reader, their_writer), (their_reader, writer)):
            self._pumps.add(asyncio.create_task(self._pump(source, target)))

    async def _pump(self, source, target) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()

    def vanish(self) -> None:
        """Nobody is at the other end of the connections that there are."""
        for pump in self._pumps:
            pump.cancel()
        self._pumps.clear()

    async def close(self) -> None:
        self.vanish()
        for writer in self._writers:
            writer.close()
        self._server.close()


@pytest_asyncio.fixture
async def relay() -> AsyncIterator[tuple[Relay, int]]:
    triton = grpc.aio.server()
    triton.add_generic_rpc_handlers((Triton(),))
    relay = Relay(triton.add_insecure_port("127.0.0.1:0"))
    await triton.start()
    port = await relay.open()
    yield relay, port
    await relay.close()
    await triton.stop(None)


async def test_who_is_at_the_address_now_is_called_soon(relay, tmp_path, monkeypatch):
    """grpc #32435, kachaka-api #229: for a quarter of an hour, or until the client's restart."""
    connections, port = relay
    options = [
        (name, KEEPALIVE_MS if value == VANISHED_S * 500 else value)
        for name, value in server._OPTIONS
    ]
    assert options != server._OPTIONS
    monkeypatch.setattr(server, "_OPTIONS", options)
    address = f"127.0.0.1:{port}"
    replica = Replica(address, Upstream(address, tmp_path / "key"))
    try:
        await _becomes(replica, Health.UP)
        request = service_pb2.ModelInferRequest(model_name="m")
        under_way = asyncio.create_task(replica.upstream.infer(request, 300))
        await asyncio.sleep(0.1)
        connections.vanish()
        await _becomes(replica, Health.DOWN)
        await _becomes(replica, Health.UP)
        with pytest.raises(ReplicaLost):  # another replica may be asked
            async with asyncio.timeout(30):
                await under_way
    finally:
        await replica.upstream.close()


async def _becomes(replica: Replica, expected: Health) -> None:
    async with asyncio.timeout(30):
        while replica.health is not expected:
            await replica.check()
            await asyncio.sleep(0.05)
