"""What a V2 request costs the gateway, in one process: ``python -m loadtests.bench.request_cost``.

The gateway, its client and the HTTP API of a Triton that answers at once share one event loop, so
that neither the kernel's scheduling nor other processes are in the figures: bytecodes of Python,
which are the same in each run, and CPU microseconds of the thread, the lowest of many passes. A
bare ASGI answer under uvicorn, asked in the same way, is what no gateway on it can go below.
``--calls N`` lists the N functions with the most bytecodes.
"""

import argparse
import asyncio
import os
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
import uvloop

from loadtests.bench.gateway_alone import write_keys
from loadtests.bench.payloads import IDENTITY_BODY, VALUES
from loadtests.bench.settings import ROOT
from loadtests.own_stack.processes import free_ports, start

MODEL = "identity_fp32"
CONFIG = ROOT / "model_repository" / MODEL / "config.pbtxt"
START_S = 60.0
WARM, COUNTED, TIMED = 500, 200, 500  # requests: before all, in the count, in each pass
VALUES_TEXT = ",".join(map(str, VALUES))
RESPONSE = (
    f'{{"model_name":"{MODEL}","model_version":"1","outputs":[{{"name":"OUTPUT0","datatype":"FP32",'
    f'"shape":[1,{len(VALUES)}],"data":[{VALUES_TEXT}]}}]}}'
).encode()
WHOLE_RESPONSE = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    % (len(RESPONSE), RESPONSE)
)


class TritonHttp(asyncio.Protocol):
    """Triton's HTTP API with one answer: a request comes in one piece here."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(WHOLE_RESPONSE)


class Client(asyncio.Protocol):
    """One request after the other on one connection."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._left = 0
        self._done: asyncio.Future[None] | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not data.startswith(b"HTTP/1.1 200 ") or not data.endswith(RESPONSE):
            raise RuntimeError(f"not the response: {data[:1000]!r}")
        self._left -= 1
        if self._left:
            self._transport.write(self._request)
        elif self._done:
            self._done.set_result(None)

    async def ask(self, count: int) -> None:
        self._left, self._done = count, asyncio.get_running_loop().create_future()
        self._transport.write(self._request)
        await self._done


class Bytecodes:
    """Counts the bytecodes of this thread by function, but for this file's own."""

    def __init__(self) -> None:
        self.by_function: Counter[tuple[str, str]] = Counter()
        self.calls = 0

    def __enter__(self) -> "Bytecodes":
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _called(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename == __file__:
            return None
        self.calls += 1
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._ran

    def _ran(self, frame: FrameType, event: str, _: object) -> Any:
        if event == "opcode":
            self.by_function[frame.f_code.co_filename, frame.f_code.co_qualname] += 1
        return self._ran


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """What a handler must do: read the body, write a response."""
    if scope["type"] == "http":
        await receive()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(RESPONSE)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": RESPONSE})


@asynccontextmanager
async def served(app: Any, port: int, key: str = "", **options: Any) -> AsyncIterator[Client]:
    """A connection to the app, which is an object or its place."""
    config = uvicorn.Config(
        app,
        port=port,
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        ws="none",
        **options,
    )
    server = uvicorn.Server(config)
    serving = asyncio.ensure_future(server.serve())
    while not server.started:
        if serving.done():
            serving.result()
            raise RuntimeError("the server did not start")
        await asyncio.sleep(0.05)
    request = (
        f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(IDENTITY_BODY)}\r\n\r\n"
    ).encode() + IDENTITY_BODY
    loop = asyncio.get_running_loop()
    transport, client = await loop.create_connection(lambda: Client(request), "127.0.0.1", port)
    yield client
    transport.close()
    server.should_exit = True
    await serving


def wait_listening(port: int) -> None:
    """Raises OSError if nothing listens there in time."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


async def wait_ready(port: int) -> None:
    """The gateway has read its catalogue. Raises TimeoutError."""
    async with asyncio.timeout(START_S):
        status = b""
        while b" 200 " not in status:
            await asyncio.sleep(0.1)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            status = await reader.readline()
            writer.close()


async def measure(home: Path, triton_port: int, n_passes: int, n_listed: int) -> None:
    gateway_port, bare_port, http_port = free_ports(3)
    loop = asyncio.get_running_loop()
    http = await loop.create_server(TritonHttp, "127.0.0.1", http_port)
    os.environ.update(
        {
            "TIDEGATE_ADMIN_PORT": "0",
            "TIDEGATE_GRPC_PORT": "0",
            "TIDEGATE_REPLICAS": f"127.0.0.1:{triton_port}/{http_port}",
            "TIDEGATE_PIPELINES": MODEL,
            "TIDEGATE_KEYS_FILE": str(home / "keys.toml"),
            "TIDEGATE_PEPPER_FILE": str(home / "pepper"),
            "TIDEGATE_POLICY_FILE": str(home / "gateway.toml"),
            "TIDEGATE_STATE_FOLDER": str(home),
        }
    )
    key = write_keys(home)
    async with (
        served(bare, bare_port) as bare_client,
        served(
            "gateway.app:from_environment",
            gateway_port,
            key,
            factory=True,
            http="gateway.http.bounded:BoundedProtocol",
        ) as gateway_client,
    ):
        await wait_ready(gateway_port)
        clients = {"gateway": gateway_client, "bare uvicorn": bare_client}
        lowest_us = dict.fromkeys(clients, float("inf"))
        for client in clients.values():
            await client.ask(WARM)
        for _ in range(n_passes):
            for name, client in clients.items():
                started = time.thread_time()
                await client.ask(TIMED)
                spent_us = (time.thread_time() - started) / TIMED * 1e6
                lowest_us[name] = min(lowest_us[name], spent_us)
        counts: dict[str, Bytecodes] = {}
        for name, client in clients.items():
            with Bytecodes() as counts[name]:
                await client.ask(COUNTED)
    http.close()
    for name, counted in counts.items():
        bytecodes = sum(counted.by_function.values()) / COUNTED
        sys.stdout.write(
            f"{name}: {bytecodes:,.0f} bytecodes in {counted.calls / COUNTED:.0f} calls, "
            f"{lowest_us[name]:.0f} us of CPU\n"
        )
    for (file, function), count in counts["gateway"].by_function.most_common(n_listed):
        sys.stdout.write(f"{count / COUNTED:7.1f}  {Path(file).name}:{function}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passes", type=int, default=60)
    parser.add_argument("--calls", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder, ExitStack() as stack:
        home, [triton_port] = Path(folder), free_ports(1)
        command = [sys.executable, "-m", "loadtests.bench.instant_triton", str(triton_port)]
        environment = {"PYTHONPATH": str(ROOT)}
        triton = start(
            "the instant Triton", [*command, str(CONFIG)], environment, home / "triton.log"
        )
        stack.callback(triton.stop)
        wait_listening(triton_port)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(measure(home, triton_port, options.passes, options.calls))


if __name__ == "__main__":
    main()
