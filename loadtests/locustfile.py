"""Locust's users: one speaks REST to the gateway, one gRPC straight to Triton.

``python -m loadtests`` starts Locust with this file. Alone it works too:

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

from loadtests.answers import AnswerBook, Reader, WrongAnswer, openai_rows, read, task_rows, v2_rows
from loadtests.listeners import register, require_launch_host
from loadtests.target import PIPELINE, find_key
from loadtests.texts import endless, real_texts

# Without this a gRPC call blocks gevent's loop, and with it every other user.
grpc.experimental.gevent.init_gevent()
register()

OPENAI_BATCH = 4
TIMEOUT_S = 35.0  # above the gateway's deadline of 30 s, so that its 504 arrives
VECTOR = "sentence_embedding"
TEXTS = endless(real_texts())
BOOK = AnswerBook()


class RestUser(FastHttpUser):
    """An application behind the gateway: it asks again as soon as it has its answer."""

    kind = "rest"
    connection_timeout = network_timeout = TIMEOUT_S

    def on_start(self) -> None:
        require_launch_host(self.host)
        self.headers = {"Authorization": f"Bearer {find_key(os.environ)}"}

    @task(3)
    def task_route(self) -> None:
        text = next(TEXTS)
        self._ask(f"/v1/{PIPELINE}", {"text": text}, [text], task_rows)

    @task(1)
    def openai_route(self) -> None:
        texts = list(islice(TEXTS, OPENAI_BATCH))
        body = {"model": PIPELINE, "input": texts, "encoding_format": "base64"}
        self._ask("/v1/embeddings", body, texts, openai_rows)

    @task(1)
    def v2_route(self) -> None:
        text = next(TEXTS)
        tensor = {"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": [text]}
        body = {"inputs": [tensor], "outputs": [{"name": VECTOR}]}
        self._ask(f"/v2/models/{PIPELINE}/infer", body, [text], v2_rows)

    def _ask(self, route: str, body: dict[str, Any], texts: list[str], reader: Reader) -> None:
        """Send and check; the clock stops before the check."""
        name = route if len(texts) == 1 else f"{route} ({len(texts)} texts)"
        with self.client.post(
            route, json=body, headers=self.headers, name=name, catch_response=True
        ) as response:
            try:
                BOOK.check(texts, read(response.status_code, response.content, reader))
            except WrongAnswer as fault:
                response.failure(str(fault))


class TritonClient(InferenceServerClient):  # type: ignore[misc]  # tritonclient ships no types
    """A client that the end of the process closes; until then the next user takes it over.

    Stock, it closes its channel again when it is collected. Under gevent (grpcio 1.85) such a close
    was seen to wait for ever on gRPC's own lock, in ``gevent_decrement_channel_count``, and Locust
    with it.
    """

    idle: ClassVar[list["TritonClient"]] = []

    @classmethod
    def take(cls, address: str) -> "TritonClient":
        # A connection of its own, as another process would have: channels share one otherwise.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        return cls.idle.pop() if cls.idle else cls(address, channel_args=options)

    def __del__(self) -> None:
        """Nothing: see above."""


class TritonUser(User):
    """A latency-sensitive client: stock ``tritonclient``, nothing between it and the server."""

    kind = "grpc"

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
        answer = self._call(tensor)
        response_ms = (time.perf_counter() - started) * 1e3
        self.environment.events.request.fire(
            request_type="gRPC",
            name=f"ModelInfer {PIPELINE}",
            response_time=response_ms,
            response_length=_size_bytes(answer),
            exception=_fault(text, answer),
            context={},
        )

    def _call(self, tensor: InferInput) -> InferResult | InferenceServerException:
        try:
            wanted = [InferRequestedOutput(VECTOR)]
            return self.client.infer(PIPELINE, [tensor], outputs=wanted, client_timeout=TIMEOUT_S)
        except InferenceServerException as error:
            return error


def _size_bytes(answer: InferResult | InferenceServerException) -> int:
    failed = isinstance(answer, InferenceServerException)
    return 0 if failed else int(answer.get_response().ByteSize())


def _fault(text: str, answer: InferResult | InferenceServerException) -> Exception | None:
    """Why the answer does not count, or None."""
    if isinstance(answer, InferenceServerException):
        return WrongAnswer(f"{answer.status()}: {str(answer.message())[:160]}")
    try:
        BOOK.check([text], answer.as_numpy(VECTOR))
    except WrongAnswer as fault:
        return fault
    return None
