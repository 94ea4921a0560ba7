"""A gateway that serves every API, on a fake Triton that has a model for each."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc import InferInput, service_pb2

from serving.triton.ports import free_ports
from tests.gateway.fake_llm import ServedLlm, llm_config, served_llm, words
from tests.gateway.fake_texts import EMBEDDING, FakeTexts
from tests.gateway.fake_triton import FakeTriton, public

V2_BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}


class EveryModel(FakeTexts):
    """Serves ``llm``, ``embed``, and ``p`` from x to y. ``metadata`` is that of each inference."""

    def __init__(self) -> None:
        super().__init__(llm_config(), public("p"), EMBEDDING)
        self.metadata: list[dict[str, str]] = []

    async def ModelInfer(self, request, context):  # noqa: N802 - its name in the protocol
        self.metadata.append(dict(context.invocation_metadata()))
        if request.model_name != "p":
            return await super().ModelInfer(request, context)
        response = await FakeTriton.ModelInfer(self, request, context)
        response.model_version = "1"
        return response

    async def ModelStreamInfer(self, request_iterator, context):  # noqa: N802
        self.metadata.append(dict(context.invocation_metadata()))
        async for message in super().ModelStreamInfer(request_iterator, context):
            yield message


@contextlib.contextmanager
def every_api(folder: Path, answer: str, **settings: Any) -> Iterator[tuple[ServedLlm, int]]:
    """The gateway and the port of its gRPC API. The language model's answers have three words."""
    (grpc_port,) = free_ports(1)
    fake = EveryModel()
    fake.write = lambda prompt, sampling: words(f"a {answer} answer")
    with served_llm(folder, fake, {"grpc_port": grpc_port, **settings}) as served:
        yield served, grpc_port


def infer_input() -> list[InferInput]:
    """For the model ``p``."""
    tensor = InferInput("x", [1], "FP32")
    tensor.set_data_from_numpy(np.ones(1, np.float32))
    return [tensor]


def llm_message(prompt: str, name: str = "llm") -> service_pb2.ModelInferRequest:
    message = service_pb2.ModelInferRequest(model_name=name)
    texts = {"text_input": prompt.encode(), "sampling_parameters": b'{"max_tokens": 5}'}
    for tensor, text in texts.items():
        message.inputs.add(name=tensor, datatype="BYTES", shape=[1])
        message.raw_input_contents.append(len(text).to_bytes(4, "little") + text)
    return message
