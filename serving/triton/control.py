"""Triton's control surface over gRPC: load, unload, index, readiness.

The repository API is closed by a key (see ``TritonServer``); every call here carries it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.json_format import MessageToJson
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from modelspec.parameters import NO_MODEL, REVISION_PARAMETER
from serving.errors import DeadlineExceeded, ModelLoadFailed, ServingError
from serving.triton.loading import Loading

KEY_HEADER = "tidegate-triton-key"
# Triton's gRPC counterpart of a restricted HTTP header carries this prefix.
GRPC_KEY_HEADER = f"triton-grpc-protocol-{KEY_HEADER}"
LOAD_TIMEOUT_S = 300.0
LOOK_S = 0.2
# While a server starts, its port refuses connections: gRPC's own second would be lost after each.
QUICK_RECONNECT = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
)
# A model's states in the index, and the reason of a version that was unloaded.
READY, UNAVAILABLE, UNLOADED = "READY", "UNAVAILABLE", "unloaded"
# A reload may take this many times as long as the model's slowest load so far, and at least this
# many seconds: the machine may be busy, and files no longer in memory. After that the processes
# that the load has started are ended.
RELOAD_FACTOR, LEAST_RELOAD_S = 4.0, 30.0
# What a full queue says, Triton's or that of a model with a queue of its own
# (no_capacity): the model is busy, not unhealthy.
QUEUE_FULL = ("Exceeds maximum queue size", "Request timeout expired", "[tidegate:no_capacity]")
# The index walks the folders one by one, and fails if a publisher removes one meanwhile.
FOLDER_REMOVED = "failed to stat file"


@dataclass(frozen=True)
class ModelState:
    """One line of the repository index."""

    name: str
    version: str
    state: str
    reason: str


class TritonControl:
    """A blocking client for one server; close it, or use it as a context manager.

    ``loading(model)`` creates the ``Loading`` that watches a load, if the server is one of ours.
    """

    def __init__(
        self,
        address: str,
        key: str,
        load_timeout_s: float = LOAD_TIMEOUT_S,
        loading: Callable[[str], Loading] | None = None,
    ) -> None:
        self.address, self.load_timeout_s, self._loading = address, load_timeout_s, loading
        self._longest_load_s: dict[str, float] = {}  # by model; failed loads count too
        self._channel = grpc.insecure_channel(address, options=QUICK_RECONNECT)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._metadata = ((GRPC_KEY_HEADER, key),)

    def is_live(self, timeout_s: float = 1) -> bool:
        try:
            response = self._stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=timeout_s)
        except grpc.RpcError:
            return False
        return bool(response.live)

    def load(self, model: str, *, afresh: bool = False) -> None:
        """Load (or reload) a model and its members; ModelLoadFailed says why that failed.

        Where ``loading`` watches, a reload is bounded by what earlier loads of the model took: the
        caller has everything else to look after. If that was too short, the next attempt gets
        longer, up to ``load_timeout_s``.

        Triton reloads a version only if one of its files has changed. With ``afresh`` it is
        reloaded in any case, with the config that it is served with now.
        """
        request = service_pb2.RepositoryModelLoadRequest(model_name=model)
        try:
            if afresh:
                config = self.config(model)
                config.parameters[REVISION_PARAMETER].string_value = str(
                    time.time()
                )  # a changed config
                text = MessageToJson(config, preserving_proto_field_name=True)
                request.parameters["config"].string_param = text
        except ServingError as error:
            raise ModelLoadFailed(model, str(error)) from error
        watch = self._loading(model) if self._loading else None
        call = self._stub.RepositoryModelLoad.future(
            request, metadata=self._metadata, timeout=self.load_timeout_s
        )
        began = time.monotonic()
        try:
            _wait(call, watch, self._bound_s(model))
        except grpc.RpcError as error:
            reason = self._not_loaded(error)
            raise ModelLoadFailed(model, watch.explained(reason) if watch else reason) from error
        finally:
            call.cancel()  # no effect on a call that has ended
            took_s = time.monotonic() - began
            self._longest_load_s[model] = max(took_s, self._longest_load_s.get(model, 0.0))

    def _bound_s(self, model: str) -> float:
        if model not in self._longest_load_s:
            return self.load_timeout_s
        return min(
            self.load_timeout_s, max(LEAST_RELOAD_S, RELOAD_FACTOR * self._longest_load_s[model])
        )

    def _not_loaded(self, error: grpc.RpcError) -> str:
        if isinstance(_serving_error(error), DeadlineExceeded):
            return (
                f"it was not loaded within {self.load_timeout_s:g} s: allow more time with "
                "tidegate up --load-timeout (TIDEGATE_LOAD_TIMEOUT_S)"
            )
        return _first_line(error)

    def unload(self, model: str) -> None:
        request = service_pb2.RepositoryModelUnloadRequest(model_name=model)
        try:
            self._call(self._stub.RepositoryModelUnload, request)
        except grpc.RpcError as error:
            raise ServingError(f"model {model} failed to unload: {_first_line(error)}") from error

    def index(self, tries: int = 3) -> list[ModelState]:
        """Every model that Triton knows; ServingError if the server does not answer."""
        try:
            response = self._call(
                self._stub.RepositoryIndex, service_pb2.RepositoryIndexRequest(), timeout_s=5
            )
        except grpc.RpcError as error:
            line = _first_line(error)
            if tries > 1 and FOLDER_REMOVED in line:
                return self.index(tries - 1)
            raise ServingError(f"Triton at {self.address} does not answer: {line}") from error
        return [ModelState(m.name, m.version, m.state, m.reason) for m in response.models]

    def is_ready(self) -> bool:
        """What ``/v2/health/ready`` says: one failed version of any model makes it false."""
        request = service_pb2.ServerReadyRequest()
        return bool(self._call(self._stub.ServerReady, request, timeout_s=5).ready)

    def config(self, model: str) -> model_config_pb2.ModelConfig:
        """The config that a model is served with; ServingError if it is not served."""
        request = service_pb2.ModelConfigRequest(name=model)
        return self._checked_call(self._stub.ModelConfig, request, 5).config

    def infer(self, request: service_pb2.ModelInferRequest, timeout_s: float) -> Any:
        """The ModelInferResponse; ServingError says why there is none."""
        return self._checked_call(self._stub.ModelInfer, request, timeout_s)

    def stream_infer(
        self, request: service_pb2.ModelInferRequest, timeout_s: float
    ) -> Iterator[service_pb2.ModelInferResponse]:
        """Each response of a decoupled model. Read the stream to its end: Triton 2.51 does not
        survive cancelled streams. ServingError says why there are no more responses."""
        try:
            for response in self._call(self._stub.ModelStreamInfer, iter([request]), timeout_s):
                if response.error_message:
                    line = " ".join(response.error_message.split())[:2000]
                    raise (DeadlineExceeded if _is_full(line) else ServingError)(line)
                yield response.infer_response
        except grpc.RpcError as error:
            raise _serving_error(error) from error

    def streams_respond(self, timeout_s: float) -> bool:
        """Whether the server answers on a stream. The one thread that serves all streams refuses a
        request for a model that does not exist, whatever the other models are doing."""
        request = service_pb2.ModelInferRequest(model_name=NO_MODEL)
        try:
            for _ in self._call(self._stub.ModelStreamInfer, iter([request]), timeout_s):
                pass
        except grpc.RpcError:
            return False
        return True

    def statistics(self, model: str) -> Sequence[Any]:
        """The ModelStatistics of each loaded version; ServingError if there are none."""
        request = service_pb2.ModelStatisticsRequest(name=model)
        response = self._checked_call(self._stub.ModelStatistics, request, 5)
        statistics: Sequence[object] = response.model_stats
        return statistics

    def _checked_call(
        self, method: Callable[..., object], request: object, timeout_s: float
    ) -> Any:
        try:
            return self._call(method, request, timeout_s)
        except grpc.RpcError as error:
            raise _serving_error(error) from error

    def _call(self, method: Callable[..., object], request: object, timeout_s: float = 60) -> Any:
        return method(request, metadata=self._metadata, timeout=timeout_s)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_key(path: Path) -> str:
    """The key in ``.tidegate/triton.key``; ServingError if there is none."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        raise ServingError(f"no Triton key at {path}: start the stack with `make up`") from None


def _wait(call: grpc.Future, watch: Loading | None, bound_s: float) -> None:
    deadline = time.monotonic() + bound_s
    while True:
        try:
            call.result(LOOK_S)
        except grpc.FutureTimeoutError:
            if watch:
                watch.look()
                if time.monotonic() > deadline:
                    watch.give_up(bound_s)
        else:
            return


def _serving_error(error: grpc.RpcError) -> ServingError:
    line = _first_line(error)
    is_late = isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    return (DeadlineExceeded if is_late or _is_full(line) else ServingError)(line)


def _is_full(line: str) -> bool:
    return any(message in line for message in QUEUE_FULL)


def _first_line(error: grpc.RpcError) -> str:
    detail = error.details() if isinstance(error, grpc.Call) else str(error)
    return " ".join(str(detail).split())[:2000]
