"""The requests: the same content for each API."""

import base64
import io
import json
import struct
from collections.abc import Mapping
from itertools import islice
from typing import Literal

import numpy as np
from PIL import Image

from loadtests.bench.stack import EMBEDDING, IDENTITY, IMAGES, BenchStack
from loadtests.bench.wrk import LoadTarget
from loadtests.texts import endless, real_texts

Through = Literal["gateway", "triton"]
VALUES = tuple(float(number) for number in range(16))
_TENSOR = {"name": "INPUT0", "shape": [1, 16], "datatype": "FP32", "data": VALUES}
IDENTITY_BODY = json.dumps({"inputs": [_TENSOR]}).encode()  # V2 JSON of the values
TEXTS = 512  # too many for a cache to help, and the same ones for every contender
JSON = {"Content-Type": "application/json"}


def texts() -> list[str]:
    return list(islice(endless(real_texts()), TEXTS))


def identity_json(
    name: str, stack: BenchStack, through: Through, model: str = IDENTITY
) -> LoadTarget:
    """Sixteen FP32 values, V2 JSON in both directions."""
    return _v2(name, stack, through, model, JSON, [IDENTITY_BODY])


def identity_binary(name: str, stack: BenchStack, through: Through) -> LoadTarget:
    """The same values in V2's binary extension, in both directions."""
    return _identity_binary(name, stack, through, struct.pack("<16f", *VALUES))


def large_json(name: str, stack: BenchStack, through: Through, n_bytes: int) -> LoadTarget:
    """A row of FP32 values as ``n_bytes`` of JSON, and JSON back."""
    text = b"0.12345678,"
    count = n_bytes // len(text)
    head = f'{{"inputs":[{{"name":"INPUT0","shape":[1,{count}],"datatype":"FP32","data":['
    body = b"".join((head.encode(), (text * count)[:-1], b"]}]}"))
    return _v2(name, stack, through, IDENTITY, JSON, [body])


def large_binary(name: str, stack: BenchStack, through: Through, n_bytes: int) -> LoadTarget:
    """A row of FP32 values as ``n_bytes`` of V2's binary extension, in both directions."""
    values = np.random.default_rng(0).random(n_bytes // 4, np.float32)
    return _identity_binary(name, stack, through, values.tobytes())


def image_task(name: str, stack: BenchStack, photo: bytes) -> LoadTarget:
    """The file in base64, labels back."""
    body = json.dumps({"image": {"b64": base64.b64encode(photo).decode()}}).encode()
    url = f"{stack.gateway}/v1/{IMAGES}"
    return LoadTarget(name, url, JSON | _authorization(stack.key), [body], stack.processes)


def image_v2(name: str, stack: BenchStack, through: Through, photo: bytes) -> LoadTarget:
    """The file as V2's binary extension, labels back as JSON."""
    raw = struct.pack("<I", len(photo)) + photo
    tensor = {"name": "image", "shape": [1, 1], "datatype": "BYTES"}
    head = _binary_head(tensor, len(raw), binary_output=False)
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return _v2(name, stack, through, IMAGES, headers, [head + raw])


def photo(n_bytes: int) -> bytes:
    """A JPEG file of about so many bytes: noise, whose size grows with its pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (1600, 1600, 3), np.uint8)
    side, file = 64, io.BytesIO()
    while file.tell() < n_bytes:
        side, file = side + 64, io.BytesIO()
        Image.fromarray(noise[:side, :side]).save(file, "JPEG", quality=90)
    return file.getvalue()


def _identity_binary(name: str, stack: BenchStack, through: Through, raw: bytes) -> LoadTarget:
    tensor = {"name": "INPUT0", "shape": [1, len(raw) // 4], "datatype": "FP32"}
    head = _binary_head(tensor, len(raw), binary_output=True)
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return _v2(name, stack, through, IDENTITY, headers, [head + raw])


def _binary_head(tensor: Mapping[str, object], n_bytes: int, binary_output: bool) -> bytes:
    binary_tensor = {**tensor, "parameters": {"binary_data_size": n_bytes}}
    document = {"inputs": [binary_tensor], "parameters": {"binary_data_output": binary_output}}
    return json.dumps(document).encode()


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
