"""Streams to a real gRPC server: the C core's, with the messages that each test wants."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
import pytest

from gateway.upstream import grpc_streams
from gateway.upstream.grpc_streams import METHOD, GrpcStreams
from serving.triton.ports import free_ports

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


async def _until(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the server is another party
            await asyncio.sleep(0.01)


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
        assert 3 <= len(streams._connections) <= 4  # the limit may come after the first streams
        for stream in under_way:
            await stream.done_writing()
            assert await stream.read() is None


async def test_the_server_sends_no_more_ahead_than_a_window_and_others_go_on():
    async with serving() as (echo, _, streams):
        slow, quick = streams.open(), streams.open()
        await slow.write(b"many 5000 1000")
        await _until(lambda: echo.sent > 10)
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
        await _until(lambda: echo.under_way)
        reading = asyncio.create_task(stream.read())
        await asyncio.sleep(0)
        stream.cancel()
        stream.cancel()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await reading
        assert refused.value.code() is CODE.CANCELLED
        await _until(lambda: echo.cancelled == 1)
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
        await _until(lambda: not echo.under_way)


async def test_a_server_that_takes_no_more_streams_finishes_those_under_way():
    """python-hyper/h2 #1181: what comes after a GOAWAY was an error."""
    async with serving() as (_, server, streams):
        stream = streams.open()
        await stream.write(b"a")
        assert await stream.read() == b"a"
        stopping = asyncio.create_task(server.stop(20))
        await _until(lambda: not streams._connections)
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


async def test_the_connection_goes_on_after_more_than_its_window(monkeypatch):
    monkeypatch.setattr(grpc_streams, "CONNECTION_BYTES", 200_000)
    async with serving() as (_, _, streams):
        stream = streams.open()
        await stream.write(b"many 2000 1000")
        await stream.done_writing()
        assert len(await _rest(stream)) == 2000
