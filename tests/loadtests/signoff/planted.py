"""A server whose capacity and faults are known: ``python -m tests.loadtests.signoff.planted PORT``.

It answers like a gateway with one pipeline, ``planted``. Each of ``--slots`` works on one request
at a time for ``--service-ms``, so that it carries ``1000 * slots / service_ms`` requests a second.
"""

import argparse
import asyncio
import json
import random
import time

CARD = {
    "name": "planted",
    "versions": ["1"],
    "routes": ["/v1/planted", "/v1/chat/completions"],
    "example": {"text": "hi"},
}


class Planted:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.slots = asyncio.Semaphore(options.slots)
        self.random = random.Random(0)  # noqa: S311 - nothing secret
        self.leaked: list[bytes] = []
        self.began = time.monotonic()

    async def serve(self) -> None:
        server = await asyncio.start_server(self.connection, "127.0.0.1", self.options.port)
        await server.serve_forever()

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode("latin-1").lower().split("\r\n")
                length = [int(v[15:]) for v in lines if v.startswith("content-length:")]
                if length:
                    await reader.readexactly(length[0])
                if head.startswith(b"POST /v1/chat/completions"):
                    await self.stream(writer)
                    continue
                status, body = self.refusal(head, lines) or await self.answer(head)
                timing = "gateway;dur=0.2, upstream;dur=1"
                writer.write(
                    f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n"
                    f"Server-Timing: {timing}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                    + body
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def stream(self, writer: asyncio.StreamWriter) -> None:
        """A chat completion of four tokens, as our gateway streams it: the first after
        ``--service-ms``, one each ``--service-ms`` after it."""
        writer.write(
            b"HTTP/1.1 200 X\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        deltas = [{"role": "assistant", "content": ""}, *({"content": "a"} for _ in range(4)), {}]
        for delta in deltas:
            choice = {"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}
            head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1}
            event = json.dumps({**head, "model": "planted", "choices": [choice]})
            self.chunk(writer, f"data: {event}\n\n")
            await writer.drain()
            await asyncio.sleep(self.options.service_ms / 1000)
        self.chunk(writer, ": still here\n\n")
        if self.random.random() >= self.options.errors:
            self.chunk(writer, "data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    def chunk(self, writer: asyncio.StreamWriter, text: str) -> None:
        writer.write(f"{len(text):x}\r\n{text}\r\n".encode())

    def refusal(self, head: bytes, lines: list[str]) -> tuple[int, bytes] | None:
        """Of a key that may not, or not as much."""
        keys = [line[22:] for line in lines if line.startswith("authorization: bearer ")]
        if self.options.forbid in keys:
            return 403, b"{}"
        return (429, b"{}") if head.startswith(b"POST") and self.is_limited(keys) else None

    def is_limited(self, keys: list[str]) -> bool:
        return self.options.limit in keys and self.random.random() < 0.5

    async def answer(self, head: bytes) -> tuple[int, bytes]:
        if head.startswith(b"GET /v1/pipelines/planted "):
            return 200, json.dumps(CARD).encode()
        if head.startswith((b"GET /v2/health/ready ", b"GET /v2/models/planted/ready ")):
            return 200, b"{}"
        if head.startswith(b"GET"):
            return 404, b"{}"
        self.leaked.append(bytes(1024 * self.options.leak_kib))
        if self.options.leak_kib == 0:
            self.leaked.clear()
        async with self.slots:
            stall_s = self.options.stall_s
            if stall_s and (time.monotonic() - self.began) % 10 < stall_s:
                await asyncio.sleep(stall_s)
            is_slow = self.random.random() < self.options.tail
            await asyncio.sleep(0.5 if is_slow else self.options.service_ms / 1000)
        return (500 if self.random.random() < self.options.errors else 200), b"{}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--service-ms", type=float, default=10.0)
    parser.add_argument("--errors", type=float, default=0.0)
    parser.add_argument("--tail", type=float, default=0.0)  # the share that takes 0.5 s
    parser.add_argument("--stall-s", type=float, default=0.0)  # in each 10 s
    parser.add_argument("--leak-kib", type=int, default=0)  # with each request
    parser.add_argument("--forbid", default="-")  # a key that has no rights
    parser.add_argument("--limit", default="-")  # a key of which every other request is refused
    asyncio.run(Planted(parser.parse_args()).serve())


if __name__ == "__main__":
    main()
