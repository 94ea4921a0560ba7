"""The requests: the same content for each API."""

import json
import struct
from itertools import islice

from loadtests.bench.stack import EMBEDDING, BenchStack
from loadtests.bench.wrk import Target
from loadtests.texts import endless, real_texts

VALUES = tuple(float(number) for number in range(16))
TEXTS = 512  # too many for a cache to help, and the same ones for every contender
JSON = {"Content-Type": "application/json"}


def texts() -> list[str]:
    return list(islice(endless(real_texts()), TEXTS))


def identity_json(name: str, base: str, model: str, key: str = "") -> Target:
    """Sixteen FP32 values, V2 JSON in both directions; with ``key`` through the gateway."""
    tensor = {"name": "INPUT0", "shape": [1, 16], "datatype": "FP32", "data": VALUES}
    body = json.dumps({"inputs": [tensor]}).encode()
    return Target(name, _infer(base, model), JSON | _authorization(key), [body])


def identity_binary(name: str, base: str, model: str, key: str = "") -> Target:
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
    headers = {"Inference-Header-Content-Length": str(len(head))} | _authorization(key)
    return Target(name, _infer(base, model), headers, [head + raw])


def embedding_v2(name: str, base: str, key: str = "") -> Target:
    """One text per request, V2 JSON; the vector comes back as JSON too."""
    bodies = [json.dumps(_text_request(text)).encode() for text in texts()]
    return Target(name, _infer(base, EMBEDDING), JSON | _authorization(key), bodies)


def embedding_task(name: str, stack: BenchStack) -> Target:
    bodies = [json.dumps({"text": text}).encode() for text in texts()]
    url = f"{stack.gateway}/v1/{EMBEDDING}"
    return Target(name, url, JSON | _authorization(stack.key), bodies)


def _text_request(text: str) -> dict[str, object]:
    tensor = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [text]}
    return {"inputs": [tensor], "outputs": [{"name": "sentence_embedding"}]}


def _infer(base: str, model: str) -> str:
    return f"{base}/v2/models/{model}/infer"


def _authorization(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}
