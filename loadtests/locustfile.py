"""Locust's users: one calls the gateway over REST, one calls Triton directly over gRPC.

``python -m loadtests`` starts Locust with this file. It also works on its own:

    locust -f loadtests/locustfile.py --host http://127.0.0.1:8080
"""

import os
import time
from itertools import islice
from typing import Any, ClassVar

import grpc.experimental.gevent
import numpy as np
from locust import FastHttpUser, User, task
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

from loadtests.listeners import register, require_launch_host
from loadtests.preflight import PIPELINE, find_key
from loadtests.responses import (
    KnownVectors,
    Reader,
    WrongResponse,
    openai_rows,
    read,
    task_rows,
    v2_rows,
)
from loadtests.texts import endless, real_texts

# Without this a gRPC call blocks gevent's loop, and with it every other user.
grpc.experimental.gevent.init_gevent()
register()

OPENAI_BATCH = 4
TIMEOUT_S = 35.0  # above the gateway's deadline of 30 s, so that its 504 arrives
VECTOR = "sentence_embedding"
TEXTS = endless(real_texts())
BOOK = KnownVectors()


class RestUser(FastHttpUser):
    """An application behind the gateway: it sends the next request as soon as it has an answer."""

    protocol = "rest"
    connection_timeout = network_timeout = TIMEOUT_S

    def on_start(self) -> None:
        require_launch_host(self.host)
        self.headers = {"Authorization": f"Bearer {find_key(os.environ)}"}

    @task(3)
    def task_route(self) -> None:
        text = next(TEXTS)
        self._send(f"/v1/{PIPELINE}", {"text": text}, [text], task_rows)

    @task(1)
    def openai_route(self) -> None:
        texts = list(islice(TEXTS, OPENAI_BATCH))
        body = {"model": PIPELINE, "input": texts, "encoding_format": "base64"}
        self._send("/v1/embeddings", body, texts, openai_rows)

    @task(1)
    def v2_route(self) -> None:
        text = next(TEXTS)
        tensor = {"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": [text]}
        body = {"inputs": [tensor], "outputs": [{"name": VECTOR}]}
        self._send(f"/v2/models/{PIPELINE}/infer", body, [text], v2_rows)

    def _send(self, route: str, body: dict[str, Any], texts: list[str], reader: Reader) -> None:
        """Send a request and check the answer; the check is not timed."""
        name = route if len(texts) == 1 else f"{route} ({len(texts)} texts)"
        with self.client.post(
            route, json=body, headers=self.headers, name=name, catch_response=True
        ) as response:
            try:
                BOOK.check(texts, read(response.status_code, response.content, reader))
            except WrongResponse as fault:
                response.failure(str(fault))


class TritonClient(InferenceServerClient):  # type: ignore[misc]  # tritonclient ships no types
    """A client that is closed by the end of the process; until then the next user reuses it.

    The stock client closes its channel again when it is garbage-collected. Under gevent (grpcio
    1.85) such a close was seen to wait forever on gRPC's own lock, in
    ``gevent_decrement_channel_count``, and Locust with it.
    """

    idle: ClassVar[list["TritonClient"]] = []

    @classmethod
    def take(cls, address: str) -> "TritonClient":
        # Its own connection, as a separate process would have: otherwise channels share one.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        return cls.idle.pop() if cls.idle else cls(address, channel_args=options)

    def __del__(self) -> None:
        """Nothing: see above."""


class TritonUser(User):
    """A latency-sensitive client: stock ``tritonclient``, with nothing between it and the
    server."""

    protocol = "grpc"

    def on_start(self) -> None:
        self.client = TritonClient.take(self.environment.parsed_options.grpc_address)

    def on_stop(self) -> None:
        TritonClient.idle.append(self.client)

    @task
    def infer(self) -> None:
        text = next(TEXTS)
        tensor = InferInput("text", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=object))
        started = time.perf_counter()
        response = self._call(tensor)
        response_ms = (time.perf_counter() - started) * 1e3
        self.environment.events.request.fire(
            request_type="gRPC",
            name=f"ModelInfer {PIPELINE}",
            response_time=response_ms,
            response_length=_size_bytes(response),
            exception=_fault(text, response),
            context={},
        )

    def _call(self, tensor: InferInput) -> InferResult | InferenceServerException:
        try:
            outputs = [InferRequestedOutput(VECTOR)]
            return self.client.infer(PIPELINE, [tensor], outputs=outputs, client_timeout=TIMEOUT_S)
        except InferenceServerException as error:
            return error


def _size_bytes(response: InferResult | InferenceServerException) -> int:
    failed = isinstance(response, InferenceServerException)
    return 0 if failed else int(response.get_response().ByteSize())


def _fault(text: str, response: InferResult | InferenceServerException) -> Exception | None:
    """Why the answer is wrong, or None."""
    if isinstance(response, InferenceServerException):
        return WrongResponse(f"{response.status()}: {str(response.message())[:160]}")
    try:
        BOOK.check([text], response.as_numpy(VECTOR))
    except WrongResponse as fault:
        return fault
    return None
