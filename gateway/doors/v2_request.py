"""A V2 inference request as it comes over HTTP -> Triton's protobuf, checked on the way.

Source: the Open Inference Protocol (KServe V2) and its binary tensor data extension.
"""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2

from gateway.errors import Malformed
from gateway.http.json_body import parse_json
from gateway.models.catalogue import Model
from gateway.models.tensors import (
    Tensor,
    check_model,
    check_shape,
    check_size,
    message_of,
    pack,
    set_parameter,
)

HEADER_LENGTH = b"inference-header-content-length"
# Triton queue-jumps on priority 1, and maps memory of other processes on the shared-memory ones.
REFUSED_PREFIX = "shared_memory_"
DROPPED_PREFIX = "triton_"
CLASSIFICATION = "classification"
DROPPED = frozenset({"priority", "timeout", "binary_data_output"})


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

    def message(self) -> service_pb2.ModelInferRequest:
        """As gRPC takes it; Malformed for a parameter that it cannot carry."""
        message = message_of(self.model, self.tensors)
        message.model_version, message.id = self.version, self.id
        for key in filter(_is_told, self.parameters):
            set_parameter(message.parameters, key, self.parameters[key])
        for name, parameters in self.outputs.items():
            output = message.outputs.add(name=name)
            if type(parameters.get(CLASSIFICATION)) is int:
                set_parameter(output.parameters, CLASSIFICATION, parameters[CLASSIFICATION])
        return message


def parse(model: Model, version: str, body: bytes, header_length: bytes | None) -> V2Request:
    """The request; Malformed says which part is wrong and what it should be."""
    document, tail = _split(body, header_length)
    parameters = _object(document, "parameters")
    refuse_shared_memory(parameters)
    tensors = _inputs(document, tail)
    check_model(model, tensors)
    outputs = _outputs(model, document)
    return V2Request(model.name, version, _text(document, "id"), tensors, outputs, parameters)


def _is_told(key: str) -> bool:
    return key not in DROPPED and not key.startswith(DROPPED_PREFIX)


def _split(body: bytes, header_length: bytes | None) -> tuple[Mapping[str, Any], memoryview]:
    """The JSON header and the binary tail."""
    length = len(body)
    if header_length is not None:
        if not header_length.isdigit() or len(header_length) > 12 or int(header_length) > length:
            raise Malformed(
                f"Inference-Header-Content-Length must be 0 to {length}, the length of the body"
            )
        length = int(header_length)
    document = parse_json(body[:length])
    if not isinstance(document, dict):
        raise Malformed("the body must be a JSON object with a list 'inputs'")
    return document, memoryview(body)[length:]


def _inputs(document: Mapping[str, Any], tail: memoryview) -> list[Tensor]:
    entries = document.get("inputs")
    if not isinstance(entries, list) or not entries:
        raise Malformed("'inputs' must be a list of at least one tensor")
    tensors, at = [], 0
    for entry in entries:
        tensor, size = _input(entry, tail[at:])
        tensors.append(tensor)
        at += size
    if at != len(tail):
        raise Malformed(
            f"the body has {len(tail)} bytes after its JSON part, but the inputs' "
            f"binary_data_size add up to {at}"
        )
    return tensors


def _input(entry: Any, tail: memoryview) -> tuple[Tensor, int]:
    """One tensor, and how many bytes of the binary tail it took."""
    if not isinstance(entry, dict):
        raise Malformed("each of 'inputs' must be an object")
    name, dtype = _text(entry, "name"), _text(entry, "datatype")
    shape = check_shape(name, entry.get("shape"))
    parameters = _object(entry, "parameters")
    refuse_shared_memory(parameters)
    if "binary_data_size" in parameters:
        raw = _binary(name, entry, parameters["binary_data_size"], tail)
        size = len(raw)
    else:
        raw, size = pack(name, dtype, flatten(name, shape, entry.get("data"))), 0
    tensor = Tensor(name, dtype, shape, raw)
    check_size(tensor)
    return tensor, size


def _binary(name: str, entry: Mapping[str, Any], size: Any, tail: memoryview) -> bytes:
    if "data" in entry:
        raise Malformed(f"input {name!r} has both 'data' and binary_data_size: send one of them")
    if type(size) is not int or size < 0:
        raise Malformed(f"input {name!r}: binary_data_size must be an integer of 0 or more")
    if size > len(tail):
        raise Malformed(
            f"input {name!r}: binary_data_size is {size}, but only {len(tail)} bytes are left"
        )
    return bytes(tail[:size])


def flatten(name: str, shape: tuple[int, ...], data: Any) -> list[Any]:
    """V2 data, flat or nested like the shape, as a flat list; Malformed when it is neither."""
    if not isinstance(data, list):
        raise Malformed(f"input {name!r} needs 'data' (a list) or binary_data_size")
    flat = data
    for depth in range(1, len(shape)):
        if not flat or not isinstance(flat[0], list):
            break
        if not all(isinstance(row, list) and len(row) == shape[depth] for row in flat):
            raise Malformed(f"input {name!r}: 'data' is not nested like shape {list(shape)}")
        flat = [value for row in flat for value in row]
    if flat and isinstance(flat[0], list):
        raise Malformed(f"input {name!r}: 'data' is nested more deeply than shape {list(shape)}")
    return flat


def _outputs(model: Model, document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The parameters of each output that is asked for."""
    entries = document.get("outputs", [])
    if not isinstance(entries, list):
        raise Malformed("'outputs' must be a list")
    outputs: dict[str, Mapping[str, Any]] = {}
    for entry in entries:
        if not isinstance(entry, dict):
            raise Malformed("each of 'outputs' must be an object")
        name, parameters = _text(entry, "name"), _object(entry, "parameters")
        check_output(model, name, outputs)
        refuse_shared_memory(parameters)
        outputs[name] = parameters
    return outputs


def check_output(model: Model, name: str, asked: Container[str]) -> None:
    """Malformed unless the model has this output, and it was not asked for before."""
    if name not in model.outputs:
        declared = ", ".join(model.outputs)
        raise Malformed(f"model {model.name!r} has no output {name!r}: it gives {declared}")
    if name in asked:
        raise Malformed(f"output {name!r} is requested twice")


def refuse_shared_memory(parameters: Iterable[str]) -> None:
    if any(key.startswith(REFUSED_PREFIX) for key in parameters):
        raise Malformed("shared memory cannot be used through the gateway: send the data itself")


def _text(document: Mapping[str, Any], key: str) -> str:
    value = document.get(key, "")
    if not isinstance(value, str) or (key != "id" and not value):
        raise Malformed(f"{key!r} must be a string that is not empty")
    return value


def _object(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = document.get(key, {})
    if not isinstance(value, dict):
        raise Malformed(f"{key!r} must be an object")
    return value
