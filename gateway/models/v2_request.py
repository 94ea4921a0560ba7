"""A V2 inference request that has passed the tensor firewall, whichever API it arrived through."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tritonclient.grpc import service_pb2

from gateway.errors import InvalidRequest
from gateway.http.json_body import LARGE_BYTES
from gateway.models.tensors import Tensor, message_of, set_parameter

DROPPED_PREFIX = "triton_"
CLASSIFICATION = "classification"
DROPPED = frozenset({"priority", "timeout", "binary_data_output"})
MAX_CLASSES = 2**31 - 1  # the most that is passed on to Triton

# Model, version; of each tensor its name, dtype, shape and size in bytes; of each requested output
# whether it shall be binary, and whether all outputs shall be.
Form = tuple[
    str,
    str,
    tuple[tuple[str, str, tuple[int, ...], int], ...],
    tuple[tuple[str, bool], ...],
    bool,
]


@dataclass
class V2Request:
    """What passed the tensor firewall: everything that is sent to Triton is built from it.

    What follows from it is found once, also for requests that differ in their elements alone.
    """

    model: str
    version: str
    id: str
    tensors: list[Tensor]
    outputs: Mapping[str, Mapping[str, Any]]  # the requested ones -> their parameters
    parameters: Mapping[str, Any]

    def without_elements(self) -> "V2Request":
        """What equal requests but for the elements of their only tensor can be made of
        (``with_elements``)."""
        _ = self.form, self.size, self.is_plain, self.timeout_s, self.asks_little_json
        return self.with_elements(b"")

    def with_elements(self, raw: bytes) -> "V2Request":
        """The same request with other elements, ``size`` bytes of them."""
        [tensor] = self.tensors
        request = object.__new__(V2Request)
        request.__dict__.update(self.__dict__)  # with what has been found
        request.tensors = [Tensor(tensor.name, tensor.dtype, tensor.shape, raw)]
        return request

    @cached_property
    def size(self) -> int:
        """Of all tensors together, in bytes."""
        return sum([len(tensor.raw) for tensor in self.tensors])

    @cached_property
    def form(self) -> Form:
        """All but the id and the elements."""
        return (
            self.model,
            self.version,
            tuple([(name, dtype, shape, len(raw)) for name, dtype, shape, raw in self.tensors]),
            tuple([(name, self.wants_binary(name)) for name in self.outputs]),
            self.all_binary,
        )

    @property
    def all_binary(self) -> bool:
        return self.parameters.get("binary_data_output") is True

    def wants_binary(self, output: str) -> bool:
        return self.outputs.get(output, {}).get("binary_data", self.all_binary) is True

    @cached_property
    def timeout_s(self) -> float | None:
        """V2's ``timeout``, which is in microseconds; the gateway enforces it, Triton does not
        receive it."""
        timeout_us = self.parameters.get("timeout")
        return timeout_us / 1e6 if type(timeout_us) is int and timeout_us > 0 else None

    @cached_property
    def is_plain(self) -> bool:
        """Whether Triton needs no more than tensors and an id."""
        if self.parameters and any(map(_is_forwarded, self.parameters)):
            return False
        return not self.outputs or not any(
            CLASSIFICATION in parameters for parameters in self.outputs.values()
        )

    @cached_property
    def asks_little_json(self) -> bool:
        """Whether a response as large as the request has little JSON in it. Triton writes JSON in
        the few threads that serve its HTTP connections: 40 MB hold up other callers for seconds."""
        return self.size <= LARGE_BYTES or (
            all(map(self.wants_binary, self.outputs)) if self.outputs else self.all_binary
        )

    def message(self) -> service_pb2.ModelInferRequest:
        """The request for gRPC. Raises InvalidRequest for a parameter that gRPC cannot carry."""
        message = message_of(self.model, self.tensors)
        message.model_version, message.id = self.version, self.id
        for key in filter(_is_forwarded, self.parameters):
            set_parameter(message.parameters, key, self.parameters[key])
        for name, parameters in self.outputs.items():
            output = message.outputs.add(name=name)
            classes = min(parameters.get(CLASSIFICATION, 0), MAX_CLASSES)
            if classes:
                set_parameter(output.parameters, CLASSIFICATION, classes)
        return message


def not_finite(name: str) -> InvalidRequest:
    return InvalidRequest(
        f"output {name!r} has NaN or Infinity, which JSON cannot carry: ask for binary_data"
    )


def _is_forwarded(key: str) -> bool:
    return key not in DROPPED and not key.startswith(DROPPED_PREFIX)
