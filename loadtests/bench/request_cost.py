"""What a request costs the gateway, in one process: ``python -m loadtests.bench.request_cost``.

The gateway, its client and the HTTP API of a Triton that answers at once share one event loop, so
that neither the kernel's scheduling nor other processes are in the figures: bytecodes of Python,
which are the same in each run, and CPU microseconds of the process, the lowest of many passes. The
requests are V2 JSON of 16 values, and the task route of an embedding with a vector of 384: of a
short text, which the gateway sends to Triton over HTTP, and of a longer one, over gRPC (to another
process, whose CPU is not counted; gRPC's own threads are). A bare ASGI answer under uvicorn, asked
in the same way, is what no gateway on it can go below. ``--calls N`` lists the N functions of each
request with the most bytecodes.
"""

import argparse
import asyncio
import json
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
from typing import Any, ClassVar

import uvicorn
import uvloop

from loadtests.bench.gateway_alone import write_keys
from loadtests.bench.instant_triton import golden_answer
from loadtests.bench.payloads import IDENTITY_BODY, VALUES
from loadtests.bench.settings import ROOT
from loadtests.own_stack.processes import free_ports, start
from modelspec.pbtxt import parse

MODEL, EMBEDDING = "identity_fp32", "text_embedding"
CONFIGS = [ROOT / "model_repository" / name / "config.pbtxt" for name in (MODEL, EMBEDDING)]
SHORT_TEXT = "Where is my parcel? It was to be here on Monday."
START_S = 60.0
WARM, COUNTED, TIMED = 500, 200, 500  # requests: before all, in the count, in each pass
VALUES_TEXT = ",".join(map(str, VALUES))
RESPONSE = (
    f'{{"model_name":"{MODEL}","model_version":"1","outputs":[{{"name":"OUTPUT0","datatype":"FP32",'
    f'"shape":[1,{len(VALUES)}],"data":[{VALUES_TEXT}]}}]}}'
).encode()


def whole_response(body: bytes, more: bytes = b"") -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n"
    return head % (more, len(body)) + body


def embedding_response() -> bytes:
    """Triton's, in V2's binary extension."""
    answer = golden_answer(parse(CONFIGS[1].read_text(encoding="utf-8")))
    outputs = [
        {
            "name": output.name,
            "datatype": output.datatype,
            "shape": list(output.shape),
            "parameters": {"binary_data_size": len(raw)},
        }
        for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
    ]
    # As Triton says of each response of an ensemble.
    parameters = {"sequence_id": 0, "sequence_start": False, "sequence_end": False}
    document = {"model_name": EMBEDDING, "model_version": "1", "parameters": parameters}
    header = json.dumps(document | {"outputs": outputs}, separators=(",", ":")).encode()
    length = b"Inference-Header-Content-Length: %d\r\n" % len(header)
    return whole_response(b"".join([header, *answer.raw_output_contents]), length)


class TritonHttp(asyncio.Protocol):
    """Triton's HTTP API with an answer for each model: a request comes in one piece here."""

    answers: ClassVar = {MODEL: whole_response(RESPONSE), EMBEDDING: embedding_response()}

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        model = data[len("POST /v2/models/") : data.index(b"/infer")].decode()
        self._transport.write(self.answers[model])


class Client(asyncio.Protocol):
    """One request after the other on one connection; each response ends with ``ending``."""

    def __init__(self, request: bytes, ending: bytes) -> None:
        self._request, self._ending = request, ending
        self._left = 0
        self._done: asyncio.Future[None] | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not data.startswith(b"HTTP/1.1 200 ") or not data.endswith(self._ending):
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
async def served(app: Any, port: int, **options: Any) -> AsyncIterator[None]:
    """The app, which is an object or its place, under uvicorn."""
    config = uvicorn.Config(
        app,
        port=port,
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_keep_alive=600,  # a connection waits for the passes of the others
        **options,
    )
    server = uvicorn.Server(config)
    serving = asyncio.ensure_future(server.serve())
    while not server.started:
        if serving.done():
            serving.result()
            raise RuntimeError("the server did not start")
        await asyncio.sleep(0.05)
    yield
    server.should_exit = True
    await serving


async def connected(port: int, path: str, key: str, body: bytes, ending: bytes) -> Client:
    request = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(lambda: Client(request, ending), "127.0.0.1", port)
    return client


async def clients_of(bare_port: int, gateway_port: int, key: str) -> dict[str, Client]:
    """A connection for each kind of request, by its name; that of the bare app is the last."""
    v2, task = f"/v2/models/{MODEL}/infer", f"/v1/{EMBEDDING}"
    short, long = (
        json.dumps({"text": text}).encode() for text in (SHORT_TEXT, " ".join(6 * [SHORT_TEXT]))
    )
    end = b'"token_count":7}'
    return {
        "V2 JSON": await connected(gateway_port, v2, key, IDENTITY_BODY, RESPONSE),
        "task route, short text": await connected(gateway_port, task, key, short, end),
        "task route, longer text": await connected(gateway_port, task, key, long, end),
        "bare uvicorn": await connected(bare_port, v2, key, IDENTITY_BODY, RESPONSE),
    }


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
            "TIDEGATE_PIPELINES": f"{MODEL},{EMBEDDING}",
            "TIDEGATE_KEYS_FILE": str(home / "keys.toml"),
            "TIDEGATE_PEPPER_FILE": str(home / "pepper"),
            "TIDEGATE_POLICY_FILE": str(home / "gateway.toml"),
            "TIDEGATE_STATE_FOLDER": str(home),
        }
    )
    key = write_keys(home)
    async with (
        served(bare, bare_port),
        served(
            "gateway.app:from_environment",
            gateway_port,
            factory=True,
            http="gateway.http.bounded:BoundedProtocol",
        ),
    ):
        await wait_ready(gateway_port)
        clients = await clients_of(bare_port, gateway_port, key)
        lowest_us = dict.fromkeys(clients, float("inf"))
        for client in clients.values():
            await client.ask(WARM)
        for _ in range(n_passes):
            for name, client in clients.items():
                started = time.process_time()
                await client.ask(TIMED)
                spent_us = (time.process_time() - started) / TIMED * 1e6
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
        for (file, function), count in counted.by_function.most_common(n_listed):
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
            "the instant Triton", [*command, *map(str, CONFIGS)], environment, home / "triton.log"
        )
        stack.callback(triton.stop)
        wait_listening(triton_port)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(measure(home, triton_port, options.passes, options.calls))


if __name__ == "__main__":
    main()
