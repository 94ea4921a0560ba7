"""Streams to a real gRPC server: the C core's, with the messages that each test wants."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame

from gateway.upstream import grpc_streams
from gateway.upstream.grpc_streams import METHOD, GrpcStream, GrpcStreams
from gateway.upstream.triton_errors import NOT_CONNECTED
from serving.triton.ports import free_ports
from tests.gateway.eventually import until

CODE = grpc.StatusCode


class Echo(grpc.GenericRpcHandler):
    """Answers each message by what it asks for; counts the streams that were cancelled."""

    def __init__(self) -> None:
        self.cancelled = self.under_way = 0
        self.metadata: dict[str, str] = {}
        self.time_remaining_s: float | None = None
        self.sent = 0

    def service(self, details):
        assert details.method == METHOD
        return grpc.stream_stream_rpc_method_handler(self._stream)

    async def _stream(self, requests: AsyncIterator[bytes], context) -> AsyncIterator[bytes]:
        self.metadata = dict(context.invocation_metadata())
        self.time_remaining_s = context.time_remaining()
        self.under_way += 1
        try:
            async for request in requests:
                verb, _, rest = request.partition(b" ")
                if verb == b"abort":
                    status, text = rest.decode().split(" ", 1)
                    await context.abort(CODE[status], text)
                elif verb == b"many":
                    count, size = map(int, rest.split())
                    for number in range(count):
                        yield b"%d" % number + b"x" * size
                        self.sent = number + 1
                elif verb == b"last":
                    yield b"x" * (int(rest) + 1)
                    self.sent = 1
                    return
                elif verb == b"wait":
                    await asyncio.sleep(float(rest))
                    yield b"waited"
                else:
                    yield request
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1


@contextlib.asynccontextmanager
async def serving(port=0, **options):
    """An Echo, its server and the streams to it."""
    echo = Echo()
    everything = {"grpc.max_receive_message_length": -1, "grpc.max_send_message_length": -1}
    server = grpc.aio.server(handlers=[echo], options=[*(everything | options).items()])
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    streams = GrpcStreams("127.0.0.1", port)
    try:
        yield echo, server, streams
    finally:
        streams.close()
        await server.stop(0)


async def _rest(stream) -> list[bytes]:
    messages = []
    while (message := await stream.read()) is not None:
        messages.append(message)
    return messages


async def test_messages_go_both_ways_in_order_and_the_end_is_none():
    async with serving() as (echo, _, streams):
        stream = streams.open((("traceparent", "00-1-2-01"),), 30)
        for number in range(5):
            await stream.write(b"%d" % number)
        assert [await stream.read() for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
        await stream.write(b"")
        await stream.done_writing()
        assert await _rest(stream) == [b""]
        assert stream.is_over()
        assert await stream.read() is None
        assert echo.metadata["traceparent"] == "00-1-2-01"
        assert 0 < echo.time_remaining_s <= 30


@pytest.mark.parametrize("size", [16_379, 16_384, 65_530, 65_536, 300_000, 5_000_000])
async def test_a_message_larger_than_frames_and_windows_arrives_whole(size):
    async with serving() as (_, _, streams):
        stream, message = streams.open(), bytes(range(256)) * (size // 256) + b"e" * (size % 256)
        await stream.write(message)
        assert await stream.read() == message
        await stream.write(message[::-1])
        assert await stream.read() == message[::-1]
        stream.cancel()


async def test_many_streams_do_not_mix_and_share_a_connection():
    async with serving() as (_, _, streams):

        async def talk(number: int) -> None:
            stream = streams.open()
            for turn in range(20):
                await stream.write(b"%d-%d" % (number, turn))
                assert await stream.read() == b"%d-%d" % (number, turn)
            await stream.done_writing()
            assert await stream.read() is None

        await asyncio.gather(*(talk(number) for number in range(200)))
        assert len(streams._connections) == 1


async def test_more_streams_than_a_connection_takes_get_another_one():
    async with serving(**{"grpc.max_concurrent_streams": 3}) as (_, _, streams):
        under_way = [streams.open() for _ in range(8)]
        for stream in under_way:
            await stream.write(b"a")
            assert await stream.read() == b"a"
        assert len(streams._connections) == 3
        for stream in under_way:
            await stream.done_writing()
            assert await stream.read() is None


async def test_the_server_sends_no_more_ahead_than_a_window_and_others_go_on():
    async with serving() as (echo, _, streams):
        slow, quick = streams.open(), streams.open()
        await slow.write(b"many 5000 1000")
        await until(lambda: echo.sent > 10)
        await quick.write(b"a")
        assert await quick.read() == b"a"
        before = 0
        while before != echo.sent:
            before = echo.sent
            await asyncio.sleep(0.3)
        assert echo.sent < 200  # its own window, and what gRPC holds
        for number in range(5000):
            assert (await slow.read()).startswith(b"%d" % number)
        for stream in (slow, quick):
            await stream.done_writing()
            assert await stream.read() is None


@pytest.mark.parametrize(
    ("status", "text"),
    [("UNAVAILABLE", "later"), ("INVALID_ARGUMENT", "100% of \u4f60\u597d: \n"), ("UNKNOWN", "?")],
)
async def test_a_status_is_raised_after_what_came_before_it(status, text):
    async with serving() as (_, _, streams):
        stream = streams.open()
        await stream.write(b"a")
        await stream.write(f"abort {status} {text}".encode())
        assert await stream.read() == b"a"
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stream.read()
            assert (refused.value.code(), refused.value.details()) == (CODE[status], text)
        with pytest.raises(grpc.aio.AioRpcError):
            await stream.write(b"b")
        await stream.done_writing()


async def test_no_server_is_unavailable_and_was_never_asked():
    streams = GrpcStreams("127.0.0.1", free_ports(1)[0])
    stream = streams.open()
    with pytest.raises(grpc.aio.AioRpcError, match="failed to connect to all addresses"):
        await stream.write(b"a")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stream.read()
    assert refused.value.code() is CODE.UNAVAILABLE


async def test_a_server_that_speaks_no_http2_is_unavailable():
    async def speak(_, writer):
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with server:
        stream = GrpcStreams("127.0.0.1", server.sockets[0].getsockname()[1]).open()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stream.write(b"a")
            await stream.read()
        assert refused.value.code() is CODE.UNAVAILABLE


async def test_what_is_no_frame_is_unavailable():
    async def speak(reader, writer):
        writer.write(b"\0\0\1\6\0\0\0\0\0.")  # a PING of one byte
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with server:
        stream = GrpcStreams("127.0.0.1", server.sockets[0].getsockname()[1]).open()
        with pytest.raises(grpc.aio.AioRpcError, match="not gRPC") as refused:
            await stream.write(b"a")
            await stream.read()
        assert refused.value.code() is CODE.UNAVAILABLE
        await asyncio.sleep(0.1)  # the server's end closes too


async def test_a_method_that_is_not_there_is_unimplemented():
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    streams = GrpcStreams("127.0.0.1", port)
    stream = streams.open()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stream.write(b"a")
        await stream.read()
    assert refused.value.code() is CODE.UNIMPLEMENTED
    streams.close()
    await server.stop(0)


async def test_a_wait_that_is_too_long_leaves_the_stream_as_it_is():
    async with serving() as (_, _, streams):
        stream, clock = streams.open(), asyncio.get_running_loop().time
        await stream.write(b"wait 0.5")
        with pytest.raises(TimeoutError):
            await stream.read(clock() + 0.01)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await stream.read()
        assert await stream.read(clock() + 20) == b"waited"
        stream.cancel()


async def test_a_cancel_reaches_the_server_and_ends_the_reader():
    async with serving() as (echo, _, streams):
        stream = streams.open()
        await stream.write(b"wait 60")
        await until(lambda: echo.under_way)
        reading = asyncio.create_task(stream.read())
        await asyncio.sleep(0)
        stream.cancel()
        stream.cancel()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await reading
        assert refused.value.code() is CODE.CANCELLED
        await until(lambda: echo.cancelled == 1)
        other = streams.open()
        await other.write(b"a")
        assert await other.read() == b"a"
        assert len(streams._connections) == 1
        other.cancel()


async def test_one_that_never_began_can_be_ended():
    async with serving() as (_, _, streams):
        stream = streams.open()
        await stream.done_writing()
        stream.cancel()
        with pytest.raises(grpc.aio.AioRpcError):
            await stream.write(b"a")


async def test_the_deadline_is_the_servers_too():
    async with serving() as (echo, _, streams):
        stream = streams.open(timeout_s=1)
        await stream.write(b"wait 60")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stream.read()
        assert refused.value.code() is CODE.DEADLINE_EXCEEDED
        await until(lambda: not echo.under_way)


async def test_a_server_that_takes_no_more_streams_finishes_those_under_way():
    """python-hyper/h2 #1181: what comes after a GOAWAY was an error."""
    async with serving() as (_, server, streams):
        stream = streams.open()
        await stream.write(b"a")
        assert await stream.read() == b"a"
        stopping = asyncio.create_task(server.stop(20))
        await until(lambda: not any(one.has_room() for one in streams._connections))
        await stream.write(b"many 300 1000")
        for number in range(300):
            assert (await stream.read()).startswith(b"%d" % number)
        refused = streams.open()
        with pytest.raises(grpc.aio.AioRpcError, match="failed to connect to all addresses"):
            await refused.write(b"a")
        await stream.done_writing()
        assert await stream.read() is None
        await stopping


async def test_a_server_that_goes_fails_its_streams_and_is_called_again_when_it_is_back():
    async with serving() as (_, server, streams):
        port = streams._port
        stream = streams.open()
        await stream.write(b"a")
        assert await stream.read() == b"a"
        await server.stop(0)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stream.read()
        assert refused.value.code() is CODE.UNAVAILABLE
        async with serving(port):
            again = streams.open()
            await again.write(b"b")
            assert await again.read() == b"b"
            again.cancel()


async def test_a_server_that_is_closed_over_fails_its_streams():
    async with serving() as (_, _, streams):
        stream = streams.open()
        await stream.write(b"a")
        streams.close()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            while await stream.read() is not None:
                pass
        assert refused.value.code() is CODE.UNAVAILABLE


@pytest.mark.parametrize("half_closed", [True, False])
async def test_a_long_response_that_is_read_together_with_its_end_arrives(half_closed):
    """h2 knows of the end before the first event: what is read then is no fault."""
    async with serving() as (echo, _, streams):
        other, stream = streams.open(), streams.open()
        for one in (other, stream):
            await one.write(b"a")
            assert await one.read() == b"a"
        await stream.write(b"many 1 20000" if half_closed else b"last 20000")
        if half_closed:
            await stream.done_writing()
        await until(lambda: echo.sent)
        time.sleep(0.3)  # noqa: ASYNC251 - so that everything is read at once
        assert len(await stream.read()) > 20_000
        assert await stream.read() is None
        await other.write(b"b")
        assert await other.read() == b"b"
        other.cancel()


async def test_a_long_request_that_is_refused_gets_its_status_and_harms_no_other():
    async with serving(**{"grpc.max_receive_message_length": 1000}) as (_, _, streams):
        other, stream = streams.open(), streams.open()
        await other.write(b"a")
        assert await other.read() == b"a"
        writing = asyncio.create_task(stream.write(bytes(1_000_000)))
        await asyncio.sleep(0)
        time.sleep(0.3)  # noqa: ASYNC251
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stream.read()
        assert refused.value.code() is CODE.RESOURCE_EXHAUSTED
        await asyncio.wait({writing}, timeout=20)
        assert writing.done()
        await other.write(b"b")
        assert await other.read() == b"b"
        other.cancel()


async def test_all_who_wait_for_a_connection_learn_at_once_that_there_is_none(monkeypatch):
    """A stopped Triton takes connections, and says nothing: nothing was sent."""
    monkeypatch.setattr(grpc_streams, "CONNECT_S", 0.3)
    listener = socket.create_server(("127.0.0.1", 0))  # that accepts nothing
    with listener:
        streams = GrpcStreams("127.0.0.1", listener.getsockname()[1])
        began = time.monotonic()
        waiting = [asyncio.create_task(streams.open().write(b"a")) for _ in range(20)]
        waiting[0].cancel()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert time.monotonic() - began < 20 * 0.3
        for error in outcomes[1:]:
            assert error.code() is CODE.UNAVAILABLE
            assert error.details().startswith(NOT_CONNECTED)
        assert not streams._connections
        streams.close()


async def test_a_connection_without_numbers_for_more_streams_is_followed_by_another():
    """httpx #283: every request failed from then on."""
    async with serving() as (_, _, streams):
        old, new = streams.open(), streams.open()
        await old.write(b"a")
        (connection,) = streams._connections
        connection._h2.highest_outbound_stream_id = 2**31 - 1
        await new.write(b"b")
        assert await new.read() == b"b"
        assert len(streams._connections) == 2
        assert await old.read() == b"a"
        await old.done_writing()
        assert await old.read() is None
        await until(lambda: connection not in streams._connections)
        new.cancel()


async def test_what_is_opened_after_the_close_is_refused():
    async with serving() as (_, _, streams):
        streams.close()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await streams.open().write(b"a")
        assert refused.value.code() is CODE.UNAVAILABLE
        assert not streams._connections


@pytest.mark.parametrize("host", ["a..b", "nothing.invalid"])
async def test_a_name_that_cannot_be_resolved_is_unavailable(host):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await GrpcStreams(host, 8001).open().write(b"a")
    assert refused.value.code() is CODE.UNAVAILABLE
    assert refused.value.details().startswith(f"{NOT_CONNECTED}: ")


@pytest.mark.parametrize("first", ["silent", "refused"])
async def test_an_address_that_does_not_answer_holds_up_none_of_the_others(monkeypatch, first):
    """A name with an IPv6 address where nobody is, and an IPv4 address."""
    async with serving() as (_, _, streams):
        port = streams._port
        with socket.socket() as listener:
            if first == "silent":  # it accepts, and says nothing
                listener.bind(("127.0.0.2", port))
                listener.listen()

            async def getaddrinfo(host, port, **_: Any) -> list[Any]:
                assert host == "triton"
                kind = (socket.SOCK_STREAM, 6, "")
                v4 = [(socket.AF_INET, *kind, (ip, port)) for ip in ("127.0.0.1", "127.0.0.3")]
                return [(socket.AF_INET6, *kind, ("127.0.0.2", port)), *v4]

            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
            two = GrpcStreams("triton", port)
            assert await two._addresses() == ["127.0.0.2", "127.0.0.1", "127.0.0.3"]
            stream = two.open()
            await stream.write(b"a")
            assert await stream.read() == b"a"
            assert len(two._connections) == 1
            stream.cancel()
            two.close()


class Peer:
    """A server that sends what a well-behaved one does not, over no network."""

    def __init__(self) -> None:
        self.connections: set[Any] = set()
        self.connection = grpc_streams._Connection(self.connections)
        self.h2 = H2Connection(H2Configuration(client_side=False))
        self.h2.initiate_connection()
        self.received = b""
        self.connection.connection_made(self)
        self.take()
        self.give()

    def write(self, data: bytes) -> None:
        self.received += data

    def abort(self) -> None:
        self.connection.connection_lost(None)

    def get_extra_info(self, _: str) -> Any:
        return SimpleNamespace(setsockopt=lambda *_: None)

    def take(self) -> None:
        self.h2.receive_data(self.received)
        self.received = b""

    def give(self) -> None:
        self.connection.data_received(self.h2.data_to_send())

    async def stream(self) -> GrpcStream:
        async def connected() -> Any:
            return self.connection

        head = {":method": "POST", ":scheme": "http", ":path": "/", ":authority": "a"}
        headers = [(name.encode(), value.encode()) for name, value in head.items()]
        stream = GrpcStream(connected, headers)
        await stream.write(b"a")
        self.take()
        self.h2.send_headers(stream.number, [(b":status", b"200")])
        self.give()
        return stream


async def test_what_is_no_message_fails_its_stream_alone():
    peer = Peer()
    stream, other = await peer.stream(), await peer.stream()
    peer.h2.send_data(stream.number, b"\1\0\0\0\1x")  # compressed
    peer.h2.send_data(other.number, b"\0\0\0\0\1x")
    peer.give()
    with pytest.raises(grpc.aio.AioRpcError, match="compressed") as refused:
        await stream.read()
    assert refused.value.code() is CODE.INTERNAL
    assert await other.read() == b"x"


async def test_a_stream_that_ends_amid_a_message_has_failed():
    peer = Peer()
    stream = await peer.stream()
    peer.h2.send_data(stream.number, b"\0\0\0\0\x09xx")
    peer.h2.send_headers(stream.number, [(b"grpc-status", b"0")], end_stream=True)
    peer.give()
    with pytest.raises(grpc.aio.AioRpcError, match="amid a message"):
        await stream.read()


async def test_padding_is_credited_too():
    peer = Peer()
    stream = await peer.stream()
    for _ in range(1000):
        peer.h2.send_data(stream.number, b"\0\0\0\0\1x", pad_length=255)
        peer.give()
        assert await stream.read() == b"x"
        peer.take()


async def test_a_server_that_allows_no_stream_is_asked_for_none():
    peer = Peer()
    peer.h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 0})
    peer.give()
    assert not peer.connection.has_room()
    assert not peer.connection.takes_streams()
    with pytest.raises(grpc.aio.AioRpcError) as refused:  # it came between the look and the stream
        await peer.stream()
    assert refused.value.details().startswith(NOT_CONNECTED)


async def test_what_the_server_says_when_it_ends_the_connection_is_the_reason():
    peer = Peer()
    stream = await peer.stream()
    goaway = GoAwayFrame(0, last_stream_id=stream.number, additional_data=b"max_age")
    peer.connection.data_received(goaway.serialize())
    assert not peer.connection.has_room()
    peer.connection.connection_lost(None)
    with pytest.raises(grpc.aio.AioRpcError, match="max_age"):
        await stream.read()
    assert not peer.connections


async def test_a_stream_above_the_last_that_the_server_takes_was_not_sent():
    peer = Peer()
    kept, refused = await peer.stream(), await peer.stream()
    peer.connection.data_received(GoAwayFrame(0, last_stream_id=kept.number).serialize())
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await refused.read()
    assert failure.value.details().startswith(NOT_CONNECTED)
    peer.h2.send_data(kept.number, b"\0\0\0\0\1x")
    peer.give()
    assert await kept.read() == b"x"


async def test_the_connection_goes_on_after_more_than_its_window(monkeypatch):
    monkeypatch.setattr(grpc_streams, "CONNECTION_BYTES", 200_000)
    async with serving() as (_, _, streams):
        stream = streams.open()
        await stream.write(b"many 2000 1000")
        await stream.done_writing()
        assert len(await _rest(stream)) == 2000


async def test_a_server_that_does_not_read_but_wants_answers_is_given_up(monkeypatch):
    """Each ping is acknowledged, which takes memory if nobody reads it."""
    monkeypatch.setattr(grpc_streams, "MOST_UNREAD_BYTES", 10_000)
    peer = Peer()
    stream = await peer.stream()
    peer.connection.pause_writing()  # the transport has had enough
    peer.connection.resume_writing()
    for number in range(2000):  # while it is read, any number of them
        peer.h2.ping(number.to_bytes(8, "big"))
        peer.give()
    assert stream.has_begun() and not stream.is_over()
    peer.connection.pause_writing()
    for number in range(2000):
        peer.h2.ping(number.to_bytes(8, "big"))
        peer.give()
        if stream.is_over():
            break
    assert 500 < number < 700  # 17 bytes each
    with pytest.raises(grpc.aio.AioRpcError, match="does not read") as lost:
        await stream.read()
    assert lost.value.code() is CODE.UNAVAILABLE
