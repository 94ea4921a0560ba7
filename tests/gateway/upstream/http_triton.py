"""Both APIs of a Triton, for faults that a real one does not show at will."""

import asyncio
import json
from collections.abc import Sequence

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

ANSWER = b'{"model_name":"m","model_version":"1","outputs":[]}'


def head(status: int, length: int, more: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d Some\r\nContent-Length: %d\r\n%s\r\n" % (status, length, more)


def whole(body: bytes, status: int = 200) -> bytes:
    return head(status, len(body)) + body


def binary(outputs: Sequence[tuple[str, str, list[int], bytes]], **more: object) -> bytes:
    """A whole response with outputs in V2's binary extension: name, datatype, shape, bytes."""
    described = [
        {
            "name": name,
            "datatype": dtype,
            "shape": shape,
            "parameters": {"binary_data_size": len(raw)},
        }
        for name, dtype, shape, raw in outputs
    ]
    document = {"model_name": "m", "model_version": "1", **more, "outputs": described}
    header = json.dumps(document).encode()
    body = b"".join([header, *(raw for *_, raw in outputs)])
    length = b"Inference-Header-Content-Length: %d\r\n" % len(header)
    return head(200, len(body), length) + body


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Both APIs of a Triton. ``http`` is the response of the HTTP one; None: no response ever."""

    def __init__(self) -> None:
        self.http: bytes | None = whole(ANSWER)
        self.requests: list[bytes] = []
        self.connections: list[asyncio.StreamWriter] = []
        self.grpc_requests: list[service_pb2.ModelInferRequest] = []

    async def start(self) -> None:
        self._grpc = grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._grpc)
        self._http = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.grpc_port = self._grpc.add_insecure_port("127.0.0.1:0")
        self.http_port = self._http.sockets[0].getsockname()[1]
        await self._grpc.start()

    async def stop(self) -> None:
        await self.stop_http()
        await self._grpc.stop(None)

    async def stop_grpc(self) -> None:
        await self._grpc.stop(None)

    async def stop_http(self) -> None:
        self._http.close()
        for connection in self.connections:
            connection.close()

    async def ModelInfer(self, request, context):  # noqa: N802 - its name in the protocol
        self.grpc_requests.append(request)
        return service_pb2.ModelInferResponse(model_name="m", model_version="over gRPC")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(writer)
        try:
            while True:
                lines = await reader.readuntil(b"\r\n\r\n")
                size = int(lines.lower().split(b"\r\ncontent-length: ")[1].split(b"\r\n")[0])
                self.requests.append(lines + await reader.readexactly(size))
                if self.http is not None:
                    writer.write(self.http)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
