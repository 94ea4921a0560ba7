"""Locust's users: one calls the embedding over REST and checks what it gets, one calls Triton
directly over gRPC, and one calls any pipeline over any of the gateway's APIs."""

import math
import os
import time
from itertools import islice
from typing import Any, ClassVar

import numpy as np
from locust import FastHttpUser, User, task
from tritonclient.grpc import InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

from loadtests.gevent_triton import TritonClient
from loadtests.listeners import PART, require_launch_host
from loadtests.preflight import PIPELINE, find_key, parse_weights
from loadtests.responses import (
    KnownVectors,
    Reader,
    WrongResponse,
    openai_rows,
    read,
    task_rows,
    v2_rows,
)
from loadtests.signoff.preflight import pipeline_of
from loadtests.signoff.requests import Client, Mix
from loadtests.texts import endless, real_texts

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


class TritonUser(User):
    """A latency-sensitive client: stock ``tritonclient``, with nothing between it and the
    server."""

    protocol = "grpc"

    def on_start(self) -> None:
        self.client = TritonClient.take(self.environment.parsed_options.grpc_address)

    def on_stop(self) -> None:
        self.client.give_back()

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


class PipelineUser(User):
    """A caller of the pipeline of ``--pipeline``, over the APIs of ``--api`` in their weights, with
    real texts and photos: the requests that a sign-off sends, but in a closed loop."""

    protocol = "pipeline"
    # One for all: each request under way has a connection of its own, over gRPC one of a few.
    _mixes: ClassVar[list[Mix]] = []

    def on_start(self) -> None:
        require_launch_host(self.host)
        if not self._mixes:
            url, options, key = (
                str(self.host),
                self.environment.parsed_options,
                find_key(os.environ),
            )
            pipeline = pipeline_of(url, options.pipeline, key)
            client = Client(url, key, options.gateway_grpc_address, TIMEOUT_S)
            self._mixes.append(client.senders(pipeline, parse_weights(options.api)))

    @task
    def call(self) -> None:
        prepared = self._mixes[0].prepare()
        started = time.perf_counter()
        response = prepared.send()
        response_s = time.perf_counter() - started
        api, pipeline = prepared.labels["api"], self.environment.parsed_options.pipeline
        self._fire(api, pipeline, response_s, response.fault)
        if not response.fault:
            for part in ("first_token", "gap"):
                part_s = response.parts_s.get(part, math.nan)
                if math.isfinite(part_s):
                    self._fire(f"{PART}{part}", f"{pipeline} ({api})", part_s, "")

    def _fire(self, kind: str, name: str, seconds: float, fault: str) -> None:
        self.environment.events.request.fire(
            request_type=kind,
            name=name,
            response_time=1e3 * seconds,
            response_length=0,
            exception=WrongResponse(fault) if fault else None,
            context={},
        )


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
