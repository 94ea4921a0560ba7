"""An embedding that answers at once: ``python -m loadtests.bench.instant_embedding PORT
CONFIG.pbtxt`` as a Triton, ``... PORT openai`` as OpenAI's API, for gateways that expect that.

Every text has the same vector of 384 numbers, so that only the gateway in front of it shows.
"""

import asyncio
import json
import struct
import sys
from pathlib import Path
from typing import Any

from tritonclient.grpc import service_pb2

from loadtests.bench.instant_triton import InstantModel, serve

NUMBERS = 384
TOKENS = 7


class InstantEmbedding(InstantModel):
    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self.config.ClearField("ensemble_scheduling")  # its steps are not here

    async def ModelInfer(self, request: Any, context: Any) -> object:  # noqa: N802
        rows = request.inputs[0].shape[0]
        response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
        vectors = struct.pack(f"<{NUMBERS}f", *_vector()) * rows
        outputs = {
            "sentence_embedding": ("FP32", [rows, NUMBERS], vectors),
            "token_count": ("INT32", [rows, 1], TOKENS.to_bytes(4, "little") * rows),
        }
        for name in [output.name for output in request.outputs] or outputs:
            datatype, shape, raw = outputs[name]
            response.outputs.add(name=name, datatype=datatype, shape=shape)
            response.raw_output_contents.append(raw)
        return response


async def openai(port: int) -> None:
    """``POST /v1/embeddings`` for one text, on kept connections."""
    document = {
        "object": "list",
        "model": "text_embedding",
        "data": [{"object": "embedding", "index": 0, "embedding": _vector()}],
        "usage": {"prompt_tokens": TOKENS, "total_tokens": TOKENS},
    }
    body = json.dumps(document).encode()
    response = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.lower().split(b"\r\n")
                lengths = [int(line[15:]) for line in lines if line.startswith(b"content-length:")]
                await reader.readexactly(sum(lengths))
                writer.write(response)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port)
    await server.serve_forever()


def _vector() -> list[float]:
    return [1 / (1 + number) for number in range(NUMBERS)]


if __name__ == "__main__":
    if sys.argv[2] == "openai":
        asyncio.run(openai(int(sys.argv[1])))
    else:
        asyncio.run(serve(int(sys.argv[1]), InstantEmbedding(Path(sys.argv[2]))))
