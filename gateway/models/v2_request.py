"""A V2 inference request that has passed the firewall, whichever API it came by."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2

from gateway.errors import InvalidRequest
from gateway.http.json_body import LARGE_BYTES
from gateway.models.tensors import Tensor, message_of, set_parameter

DROPPED_PREFIX = "triton_"
CLASSIFICATION = "classification"
DROPPED = frozenset({"priority", "timeout", "binary_data_output"})
MAX_CLASSES = 2**31 - 1  # Triton is not told more


@dataclass(slots=True)
class V2Request:
    """What passed the firewall: all that Triton is told is made of it."""

    model: str
    version: str
    id: str
    tensors: list[Tensor]
    outputs: Mapping[str, Mapping[str, Any]]  # those asked for, with the parameters of each
    parameters: Mapping[str, Any]

    @property
    def all_binary(self) -> bool:
        return self.parameters.get("binary_data_output") is True

    def wants_binary(self, output: str) -> bool:
        return self.outputs.get(output, {}).get("binary_data", self.all_binary) is True

    @property
    def timeout_s(self) -> float | None:
        """V2's ``timeout`` is in microseconds; the gateway keeps it, Triton is not told."""
        timeout_us = self.parameters.get("timeout")
        return timeout_us / 1e6 if type(timeout_us) is int and timeout_us > 0 else None

    @property
    def is_plain(self) -> bool:
        """Whether Triton has to be told no more than tensors and an id."""
        return not any(map(_is_told, self.parameters)) and not any(
            CLASSIFICATION in parameters for parameters in self.outputs.values()
        )

    @property
    def asks_little_json(self) -> bool:
        """Whether an answer as large as the request has little JSON in it. Triton writes JSON in
        the few threads that serve its HTTP connections: 40 MB hold other callers up for seconds."""
        size = sum(len(tensor.raw) for tensor in self.tensors)
        return size <= LARGE_BYTES or (
            all(map(self.wants_binary, self.outputs)) if self.outputs else self.all_binary
        )

    def message(self) -> service_pb2.ModelInferRequest:
        """As gRPC takes it; InvalidRequest for a parameter that it cannot carry."""
        message = message_of(self.model, self.tensors)
        message.model_version, message.id = self.version, self.id
        for key in filter(_is_told, self.parameters):
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


def _is_told(key: str) -> bool:
    return key not in DROPPED and not key.startswith(DROPPED_PREFIX)
