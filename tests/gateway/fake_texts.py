"""Text models in a fake Triton: vectors that count words, and a cross-encoder that counts the words
which query and passage have in common."""

import json
import re
import zlib
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2

from gateway.models.tensors import unpack
from tests.gateway.fake_llm import FakeLlm

WIDTH = 4096
MOST_TOKENS = 40
_TEXT = {"type": "string", "minLength": 1, "maxLength": 65536}


def text_config(
    name: str, fields: tuple[str, ...], output: str, width: int, **openai: Any
) -> model_config_pb2.ModelConfig:
    """A pipeline from the texts ``fields`` to FP32 ``output`` and ``token_count``."""
    config = model_config_pb2.ModelConfig(name=name, max_batch_size=8)
    for field in fields:
        config.input.add(name=field, data_type="TYPE_STRING", dims=[1])
    config.output.add(name=output, data_type="TYPE_FP32", dims=[width])
    config.output.add(name="token_count", data_type="TYPE_INT32", dims=[1])
    properties = {field: {**_TEXT, "x-tensor": field} for field in fields}
    truncate = {"type": "boolean", "x-parameter": "truncate"}
    schema = {
        "purpose": "A test.",
        "request": {
            "type": "object",
            "required": list(fields),
            "additionalProperties": False,
            "properties": {**properties, "truncate": truncate},
        },
        "response": {"type": "object", "properties": {}},
        "example": dict.fromkeys(fields, "Hello"),
        "openai": openai,
    }
    config.parameters["tidegate.endpoint"].string_value = json.dumps(schema)
    return config


EMBEDDING = text_config(
    "embed",
    ("text",),
    "vector",
    WIDTH,
    embeddings={"text": "text", "vector": "vector", "tokens": "token_count"},
)
CROSS_ENCODER = text_config(
    "cross",
    ("query", "text"),
    "score",
    1,
    rerank={"query": "query", "text": "text", "score": "score", "tokens": "token_count"},
)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def vector(text: str) -> np.ndarray:
    counts = np.zeros(WIDTH, dtype=np.float32)
    for word in _words(text):
        counts[zlib.crc32(word.encode()) % WIDTH] += 1
    length = np.linalg.norm(counts)
    return counts / length if length else counts


class FakeTexts(FakeLlm):
    """Serves the models above, and refuses as the real tokenizer step does."""

    def __init__(self, *configs: model_config_pb2.ModelConfig) -> None:
        super().__init__(*(configs or (EMBEDDING, CROSS_ENCODER)))
        self.rows: list[tuple[str, ...]] = []  # the texts of each row that was inferred

    async def ModelInfer(self, request, context):  # noqa: N802 - its name in the protocol
        columns = {
            tensor.name: [
                text.decode() for text in unpack(tensor.datatype, tensor.shape, raw).ravel()
            ]
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        rows = list(zip(*columns.values(), strict=True))
        self.rows += rows
        for index, row in enumerate(rows):
            problem = self._problem(row, request.parameters["truncate"].bool_param)
            if problem:
                await context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"[tidegate:invalid_input row={index}] {problem}",
                )
        return self._respond(request, columns, rows)

    def _problem(self, row: tuple[str, ...], truncates: bool) -> str:
        if not all(text.strip() for text in row):
            return "is empty: send at least one character"
        if sum(map(len, map(_words, row))) > MOST_TOKENS and not truncates:
            return f"has too many tokens and the model takes {MOST_TOKENS}"
        return ""

    def _respond(self, request, columns, rows):
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        if "query" in columns:
            scores = [
                len({*_words(query)} & {*_words(text)}) / max(1, len({*_words(text)}))
                for query, text in zip(columns["query"], columns["text"], strict=True)
            ]
            values, name = np.array(scores, dtype=np.float32)[:, None], "score"
        else:
            values, name = np.stack([vector(text) for text in columns["text"]]), "vector"
        counts = np.array([[sum(map(len, map(_words, row)))] for row in rows], dtype=np.int32)
        for output, dtype, array in ((name, "FP32", values), ("token_count", "INT32", counts)):
            response.outputs.add(name=output, datatype=dtype, shape=array.shape)
            response.raw_output_contents.append(array.tobytes())
        return response
