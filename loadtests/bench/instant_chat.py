"""A Triton whose language model answers at once: ``python -m loadtests.bench.instant_chat PORT
CONFIG.pbtxt``. It sends as many pieces of a word as ``max_tokens`` says, as fast as it can.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tritonclient.grpc import service_pb2

from loadtests.bench.instant_triton import InstantModel, serve


class InstantChat(InstantModel):
    async def ModelStreamInfer(  # noqa: N802
        self, requests: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[object]:
        async for request in requests:
            if request.model_name != self.config.name:  # a probe of the stream itself
                yield service_pb2.ModelStreamInferResponse(error_message="there is no such model")
                continue
            sampling = next(
                raw
                for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
                if tensor.name == "sampling_parameters"
            )
            tokens = json.loads(sampling[4:])["max_tokens"]
            piece = _piece(self.config.name, "None")
            for _ in range(tokens - 1):
                yield piece
            yield _piece(self.config.name, "length")


def _piece(model: str, reason: str) -> object:
    """A response as our engine's backend sends it."""
    message = service_pb2.ModelStreamInferResponse()
    response = message.infer_response
    response.model_name, response.model_version = model, "1"
    response.parameters["triton_final_response"].bool_param = reason != "None"
    for name, text in (("text_output", " word"), ("finish_reason", reason)):
        response.outputs.add(name=name, datatype="BYTES", shape=[1])
        response.raw_output_contents.append(len(text).to_bytes(4, "little") + text.encode())
    for name, shape in (("num_input_tokens", []), ("num_output_tokens", [1])):
        response.outputs.add(name=name, datatype="UINT32", shape=shape)
        response.raw_output_contents.append((1).to_bytes(4, "little"))
    return message


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), InstantChat(Path(sys.argv[2]))))
