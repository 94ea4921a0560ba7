"""A V2 inference request as it comes over HTTP -> Triton's protobuf, checked on the way.

Source: the Open Inference Protocol (KServe V2) and its binary tensor data extension.
"""

import math
from collections.abc import Container, Iterable, Mapping
from typing import Any

from gateway.errors import InvalidRequest, quoted
from gateway.http.json_body import SMALL_BYTES, parse_json
from gateway.http.large_json import Arrays, Bounds, cut_arrays
from gateway.models.catalogue import Model
from gateway.models.tensors import (
    MAX_STRINGS,
    SIZE_BYTES,
    Tensor,
    check_count,
    check_model,
    check_shape,
    check_size,
    pack,
    pack_text,
)
from gateway.models.v2_request import CLASSIFICATION, V2Request

HEADER_LENGTH = b"inference-header-content-length"
# Triton queue-jumps on priority 1, and maps memory of other processes on the shared-memory ones.
REFUSED_PREFIX = "shared_memory_"
MAX_PARAMETERS = 64  # of a request, and of each of its tensors
# Beside arrays of numbers: the strings of two tensors, each of them in a list of its own.
_BOUNDS = Bounds(values=4 * MAX_STRINGS, containers=2 * MAX_STRINGS, keys=2**14)


def is_large(model: Model, body: bytes, header_length: bytes | None) -> bool:
    """Whether ``parse`` takes longer than the event loop should wait: for its JSON, or for strings
    that have to be counted one by one. Other binary tensors are copied and no more."""
    if len(body) <= SMALL_BYTES:
        return False
    is_short = header_length is not None and _is_below(header_length, SMALL_BYTES)
    return not is_short or any(meta.dtype == "BYTES" for meta in model.inputs.values())


def _is_below(number: bytes, most: int) -> bool:
    return number.isdigit() and len(number) <= 12 and int(number) <= most


def parse(model: Model, version: str, body: bytes, header_length: bytes | None) -> V2Request:
    """The request; InvalidRequest says which part is wrong and what it should be."""
    if header_length is not None:
        if not _is_below(header_length, len(body)):
            raise InvalidRequest(
                f"Inference-Header-Content-Length must be 0 to {len(body)}, the length of the body"
            )
        if not int(header_length):
            return _raw_request(model, version, body)
    document, tail, arrays = _split(body, header_length)
    parameters = _parameters(document)
    outputs = _outputs(model, document)
    tensors = _inputs(model, document, tail, arrays)
    check_model(model, tensors)
    return V2Request(model.name, version, _text(document, "id"), tensors, outputs, parameters)


def _raw_request(model: Model, version: str, body: bytes) -> V2Request:
    """The body is the one input's tensor, and nothing else: Triton's raw binary request. The shape
    is the declared one, with one row, and its open dimension as long as the bytes are."""
    if len(model.inputs) != 1:
        raise InvalidRequest(
            f"a raw binary request is for models with one input: {model.name!r} has "
            f"{len(model.inputs)}: send them with their JSON header"
        )
    [(name, meta)] = model.inputs.items()
    open_dims = [axis for axis, dim in enumerate(meta.dims) if dim == -1]
    shape = list(meta.dims)
    if meta.dtype == "BYTES":
        if open_dims or math.prod(shape) != 1:
            raise InvalidRequest(
                f"a raw binary request is one string, and input {name!r} has shape {shape}: "
                "send it with its JSON header"
            )
        body = len(body).to_bytes(4, "little") + body
    elif len(open_dims) > 1:
        raise InvalidRequest(
            f"the shape of a raw binary request is not clear: input {name!r} has {shape}: "
            "send it with its JSON header"
        )
    elif open_dims:
        fixed = math.prod(dim for dim in shape if dim != -1) * SIZE_BYTES[meta.dtype]
        shape[open_dims[0]] = len(body) // fixed if fixed else 0
    if model.max_batch_size:
        shape.insert(0, 1)
    tensor = Tensor(name, meta.dtype, tuple(shape), body)
    check_size(tensor)
    check_model(model, [tensor])
    return V2Request(model.name, version, "", [tensor], {}, {"binary_data_output": True})


def _split(
    body: bytes, header_length: bytes | None
) -> tuple[Mapping[str, Any], memoryview, Arrays | None]:
    """The JSON header, the binary tail, and the header's long arrays."""
    length = len(body) if header_length is None else int(header_length)
    document, arrays = read_document(body if length == len(body) else body[:length])
    if not isinstance(document, dict):
        raise InvalidRequest("the body must be a JSON object with a list 'inputs'")
    return document, memoryview(body)[length:], arrays


def read_document(text: bytes) -> tuple[Any, Arrays | None]:
    """The JSON document, with its long arrays of numbers apart."""
    if len(text) <= SMALL_BYTES:
        return parse_json(text), None
    rest, arrays = cut_arrays(text)
    return parse_json(rest, _BOUNDS), arrays


def _inputs(
    model: Model, document: Mapping[str, Any], tail: memoryview, arrays: Arrays | None
) -> list[Tensor]:
    entries = document.get("inputs")
    if not isinstance(entries, list) or not entries:
        raise InvalidRequest("'inputs' must be a list of at least one tensor")
    check_count(model, len(entries))
    tensors, at = [], 0
    for entry in entries:
        tensor, size = _input(entry, tail[at:], arrays)
        tensors.append(tensor)
        at += size
    if at != len(tail):
        raise InvalidRequest(
            f"the body has {len(tail)} bytes after its JSON part, but the inputs' "
            f"binary_data_size add up to {at}"
        )
    return tensors


def _input(entry: Any, tail: memoryview, arrays: Arrays | None) -> tuple[Tensor, int]:
    """One tensor, and how many bytes of the binary tail it took."""
    if not isinstance(entry, dict):
        raise InvalidRequest("each of 'inputs' must be an object")
    name, dtype = _text(entry, "name"), _text(entry, "datatype")
    shape = check_shape(name, entry.get("shape"))
    parameters = _parameters(entry)
    raw: bytes | memoryview
    if "binary_data_size" in parameters:
        raw = _binary(name, entry, parameters["binary_data_size"], tail)
        size = len(raw)
    else:
        data, size = entry.get("data"), 0
        text = arrays.of(data) if arrays else None
        if text is None:
            raw = pack(name, dtype, flatten(name, shape, data))
        else:
            raw = pack_text(name, dtype, shape, text)
    tensor = Tensor(name, dtype, shape, raw)
    check_size(tensor)
    return tensor, size


def _binary(name: str, entry: Mapping[str, Any], size: Any, tail: memoryview) -> memoryview:
    if entry.get("data") is not None:
        raise InvalidRequest(
            f"input {quoted(name)} has both 'data' and binary_data_size: send one of them"
        )
    if type(size) is not int or size < 0:
        raise InvalidRequest(
            f"input {quoted(name)}: binary_data_size must be an integer of 0 or more"
        )
    if size > len(tail):
        raise InvalidRequest(
            f"input {quoted(name)}: binary_data_size is {size}, but only {len(tail)} bytes are left"
        )
    return tail[:size]


def flatten(name: str, shape: tuple[int, ...], data: Any) -> list[Any]:
    """V2 data, flat or nested like the shape, as a flat list; InvalidRequest when it is neither."""
    if not isinstance(data, list):
        raise InvalidRequest(f"input {quoted(name)} needs 'data' (a list) or binary_data_size")
    flat = data
    for depth in range(1, len(shape)):
        if not flat or not isinstance(flat[0], list):
            break
        if not all(isinstance(row, list) and len(row) == shape[depth] for row in flat):
            raise InvalidRequest(
                f"input {quoted(name)}: 'data' is not nested like shape {list(shape)}"
            )
        flat = [value for row in flat for value in row]
    if flat and isinstance(flat[0], list):
        raise InvalidRequest(
            f"input {quoted(name)}: 'data' is nested more deeply than shape {list(shape)}"
        )
    return flat


def _outputs(model: Model, document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The parameters of each output that is asked for."""
    entries = document.get("outputs")
    if entries is None:
        return {}
    if not isinstance(entries, list):
        raise InvalidRequest("'outputs' must be a list")
    check_output_count(model, len(entries))
    outputs: dict[str, Mapping[str, Any]] = {}
    for entry in entries:
        if not isinstance(entry, dict):
            raise InvalidRequest("each of 'outputs' must be an object")
        name, parameters = _text(entry, "name"), _parameters(entry)
        check_output(model, name, outputs)
        if CLASSIFICATION in parameters:
            _check_classification(name, parameters[CLASSIFICATION])
        outputs[name] = parameters
    return outputs


def _check_classification(name: str, value: Any) -> None:
    """As Triton: 0 asks for none, and more classes than there are for all of them."""
    if type(value) is not int or not 0 <= value < 2**64:
        raise InvalidRequest(
            f"output {name!r}: classification must be a number of classes: an integer of 0 or more"
        )


def check_output_count(model: Model, outputs: int) -> None:
    """InvalidRequest for more outputs than the model has, before anything is done for each of
    them."""
    if outputs > len(model.outputs):
        raise InvalidRequest(
            f"{outputs} outputs are asked for: model {model.name!r} gives {len(model.outputs)}: "
            + ", ".join(model.outputs)
        )


def check_output(model: Model, name: str, asked: Container[str]) -> None:
    """InvalidRequest unless the model has this output, and it was not asked for before."""
    if name not in model.outputs:
        declared = ", ".join(model.outputs)
        raise InvalidRequest(
            f"model {model.name!r} has no output {quoted(name)}: it gives {declared}"
        )
    if name in asked:
        raise InvalidRequest(f"output {name!r} is requested twice")


def refuse_shared_memory(parameters: Iterable[str]) -> None:
    if any(key.startswith(REFUSED_PREFIX) for key in parameters):
        raise InvalidRequest(
            "shared memory cannot be used through the gateway: send the data itself"
        )


def _text(document: Mapping[str, Any], key: str) -> str:
    value = document.get(key)
    if value is None and key == "id":
        return ""
    if not isinstance(value, str) or (key != "id" and not value):
        raise InvalidRequest(f"{key!r} must be a string that is not empty")
    return value


def _parameters(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The object's ``parameters`` without those that are null; InvalidRequest for too many."""
    value = document.get("parameters")
    if value is None:
        return {}
    return checked_parameters(value)


def checked_parameters(value: Any, most: int = MAX_PARAMETERS) -> Mapping[str, Any]:
    """Parameters without those that are null; InvalidRequest for what is no object, or holds too
    many, or names memory of other processes."""
    if not isinstance(value, dict):
        raise InvalidRequest("'parameters' must be an object")
    if len(value) > most:
        raise InvalidRequest(f"there are {len(value)} parameters: send at most {most}")
    refuse_shared_memory(value)
    return {key: each for key, each in value.items() if each is not None}
