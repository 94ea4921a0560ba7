"""The requests: the same content for each API."""

import json
import struct
from itertools import islice
from typing import Literal

from loadtests.bench.stack import EMBEDDING, IDENTITY, BenchStack
from loadtests.bench.wrk import LoadTarget
from loadtests.texts import endless, real_texts

Through = Literal["gateway", "triton"]
VALUES = tuple(float(number) for number in range(16))
TEXTS = 512  # too many for a cache to help, and the same ones for every contender
JSON = {"Content-Type": "application/json"}


def texts() -> list[str]:
    return list(islice(endless(real_texts()), TEXTS))


def identity_json(
    name: str, stack: BenchStack, through: Through, model: str = IDENTITY
) -> LoadTarget:
    """Sixteen FP32 values, V2 JSON in both directions."""
    tensor = {"name": "INPUT0", "shape": [1, 16], "datatype": "FP32", "data": VALUES}
    body = json.dumps({"inputs": [tensor]}).encode()
    return _v2(name, stack, through, model, JSON, [body])


def identity_binary(name: str, stack: BenchStack, through: Through) -> LoadTarget:
    """The same values in V2's binary extension, in both directions."""
    raw = struct.pack("<16f", *VALUES)
    tensor = {
        "name": "INPUT0",
        "shape": [1, 16],
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(raw)},
    }
    document = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    head = json.dumps(document).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return _v2(name, stack, through, IDENTITY, headers, [head + raw])


def embedding_v2(name: str, stack: BenchStack, through: Through, rows: int = 1) -> LoadTarget:
    """V2 JSON; the vectors come back as JSON too."""
    bodies = [json.dumps(_text_request(chunk)).encode() for chunk in chunks(rows)]
    return _v2(name, stack, through, EMBEDDING, JSON, bodies)


def embedding_task(name: str, stack: BenchStack, rows: int = 1) -> LoadTarget:
    inputs = ([{"text": text} for text in chunk] for chunk in chunks(rows))
    bodies = [json.dumps(row[0] if rows == 1 else {"inputs": row}).encode() for row in inputs]
    url = f"{stack.gateway}/v1/{EMBEDDING}"
    return LoadTarget(name, url, JSON | _authorization(stack.key), bodies, stack.processes)


def chunks(rows: int) -> list[list[str]]:
    """The texts of each request."""
    everything = texts()
    return [everything[start : start + rows] for start in range(0, TEXTS, rows)]


def _text_request(chunk: list[str]) -> dict[str, object]:
    tensor = {"name": "text", "shape": [len(chunk), 1], "datatype": "BYTES", "data": chunk}
    return {"inputs": [tensor], "outputs": [{"name": "sentence_embedding"}]}


def _v2(
    name: str,
    stack: BenchStack,
    through: Through,
    model: str,
    headers: dict[str, str],
    bodies: list[bytes],
) -> LoadTarget:
    base, key = (stack.gateway, stack.key) if through == "gateway" else (stack.triton, "")
    url = f"{base}/v2/models/{model}/infer"
    return LoadTarget(name, url, headers | _authorization(key), bodies, stack.processes)


def _authorization(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}
