"""KServe's own client, REST and gRPC: one JSON line for each call (run by its own Python).

``python kserve_calls.py URL GRPC_ADDRESS``, with the key in TIDEGATE_API_KEY.
"""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import kserve
import numpy as np
from kserve.protocol.infer_type import InferInput, InferRequest

MODEL, TEXT = "identity_fp32", "text_embedding"
MISSING = "no_such_model"
Call = Callable[[], Awaitable[Any]]


def _numbers(model: str, binary: bool) -> InferRequest:
    values = np.arange(16, dtype=np.float32).reshape(1, 16)
    tensor = InferInput("INPUT0", [1, 16], "FP32")
    tensor.set_data_from_numpy(values, binary_data=binary)
    return InferRequest(model, [tensor], request_id="mine")


def _text() -> InferRequest:
    tensor = InferInput("text", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([["Where is my parcel?"]], dtype=object))
    return InferRequest(TEXT, [tensor])


def _echoed(response: Any) -> bool:
    values = response.outputs[0].as_numpy().reshape(-1).tolist()
    return bool(response.id == "mine" and values == list(range(16)))


def _embedded(response: Any) -> bool:
    vectors = {output.name: output.as_numpy() for output in response.outputs}
    return bool(vectors["sentence_embedding"].shape == (1, 384))


class Rest:
    """The calls by name: each returns whether the response is right, or raises."""

    def __init__(self, url: str, key: str) -> None:
        self._client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2", retries=0))
        self._url, self._key = url, key

    def calls(self) -> dict[str, Call]:
        client, url = self._client, self._url
        return {
            "is_server_live": lambda: client.is_server_live(url, headers=self._headers),
            "is_server_ready": lambda: client.is_server_ready(url, headers=self._headers),
            "is_model_ready": lambda: client.is_model_ready(url, MODEL, headers=self._headers),
            "infer, JSON": lambda: self._infer(_numbers(MODEL, False), _echoed),
            "infer, binary": lambda: self._infer(_numbers(MODEL, True), _echoed),
            "infer, text": lambda: self._infer(_text(), _embedded),
            "a model that is not there": self._missing,
        }

    @property
    def _headers(self) -> dict[str, str]:
        return {
            "authorization": f"Bearer {self._key}"
        }  # a new dict each time: the client modifies it

    async def _infer(self, request: InferRequest, is_right: Callable[[object], bool]) -> bool:
        name = request.model_name
        return is_right(
            await self._client.infer(self._url, request, model_name=name, headers=self._headers)
        )

    async def _missing(self) -> bool:
        try:
            await self._infer(_numbers(MISSING, False), _echoed)
        except Exception as error:
            return "404" in str(error) and MISSING in str(error)
        return False


class Grpc:
    def __init__(self, address: str, key: str) -> None:
        self._client = kserve.InferenceGRPCClient(address, retries=0)
        self._metadata = (("authorization", f"Bearer {key}"),)

    def calls(self) -> dict[str, Call]:
        client, metadata = self._client, self._metadata
        return {
            "is_server_live": lambda: client.is_server_live(headers=metadata),
            "is_server_ready": lambda: client.is_server_ready(headers=metadata),
            "is_model_ready": lambda: client.is_model_ready(MODEL, headers=metadata),
            "infer, contents": lambda: self._infer(_numbers(MODEL, False), _echoed),
            "infer, raw": lambda: self._infer(_numbers(MODEL, True), _echoed),
            "infer, text": lambda: self._infer(_text(), _embedded),
            "a model that is not there": self._missing,
        }

    async def _infer(self, request: InferRequest, is_right: Callable[[object], bool]) -> bool:
        return is_right(await self._client.infer(request, headers=self._metadata))

    async def _missing(self) -> bool:
        return not await self._client.is_model_ready(MISSING, headers=self._metadata)


async def _run(api: str, calls: dict[str, Call]) -> None:
    for name, call in calls.items():
        try:
            fault = "" if await call() is True else "wrong response"
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        sys.stdout.write(json.dumps({"client": f"KServe {api}", "what": name, "fault": fault}))
        sys.stdout.write("\n")


async def main() -> None:
    url, address = sys.argv[1:]
    key = os.environ["TIDEGATE_API_KEY"]
    await _run("REST", Rest(url, key).calls())
    await _run("gRPC", Grpc(address, key).calls())


if __name__ == "__main__":
    asyncio.run(main())
