"""Parses and checks a V2 inference request sent over HTTP.

Source: the Open Inference Protocol (KServe V2) and its binary tensor data extension.
"""

import math
from collections.abc import Container, Iterable, Mapping
from typing import Any

import orjson

from gateway.errors import InvalidRequest, quoted
from gateway.http.json_body import SMALL_BYTES, parse_json
from gateway.http.large_json import Arrays, Bounds, cut_arrays
from gateway.models.catalogue import Model
from gateway.models.tensors import (
    MAX_STRINGS,
    Tensor,
    check_count,
    check_model,
    check_shape,
    check_size,
    pack,
    pack_text,
)
from gateway.models.v2_request import CLASSIFICATION, V2Request
from modelspec.dtypes import SIZE_BYTES

HEADER_LENGTH = b"inference-header-content-length"
# Triton maps memory of other processes for these parameters. (It also jumps the queue for priority
# 1: ``DROPPED`` in gateway.models.v2_request.)
REFUSED_PREFIX = "shared_memory_"
MAX_PARAMETERS = 64  # of a request, and of each of its tensors
_DATA = b'"data"'
# Of each model: requests that are known but for their elements, and how much text they may have
# around these.
MAX_KNOWN, KNOWN_BYTES = 64, 1024
# Besides arrays of numbers: the strings of two tensors, each in a list of its own.
_BOUNDS = Bounds(values=4 * MAX_STRINGS, containers=2 * MAX_STRINGS, keys=2**14)


def is_large(model: Model, body: bytes, header_length: bytes | None) -> bool:
    """Whether ``parse`` would block the event loop for too long: for its JSON, or for strings that
    have to be counted one by one. Other binary tensors are only copied."""
    if len(body) <= SMALL_BYTES:
        return False
    is_short = header_length is not None and _is_at_most(header_length, SMALL_BYTES)
    return not is_short or any(meta.dtype == "BYTES" for meta in model.inputs.values())


def _is_at_most(number: bytes, limit: int) -> bool:
    return number.isdigit() and len(number) <= 12 and int(number) <= limit


def parse(model: Model, version: str, body: bytes, header_length: bytes | None) -> V2Request:
    """The request; raises InvalidRequest, saying which part is wrong and what it should be."""
    if header_length is not None:
        if not _is_at_most(header_length, len(body)):
            raise InvalidRequest(
                f"Inference-Header-Content-Length must be 0 to {len(body)}, the length of the body"
            )
        if not int(header_length):
            return _raw_request(model, version, body)
        return _parse(model, version, body, header_length)
    if len(body) > SMALL_BYTES:
        return _parse(model, version, body)
    begin = body.find(b"[", body.find(_DATA))
    end = body.find(b"]", begin) + 1
    around, elements = (version, body[:begin], body[end:]), body[begin:end]
    known: V2Request | None = model.known_requests.get(around)
    if known:
        request = _with_elements(known, elements)
        if request:
            return request
    request = _parse(model, version, body)
    if not known and _is_worth_knowing(request, body, elements):
        if len(model.known_requests) >= MAX_KNOWN:
            model.known_requests.clear()
        model.known_requests[around] = request.without_elements()
    return request


def _with_elements(known: V2Request, elements: bytes) -> V2Request | None:
    """The request that differs from the ``known`` one in its elements alone; None if the text is no
    flat array of as many values of its type."""
    tensor = known.tensors[0]
    try:
        raw = pack(tensor.name, tensor.dtype, orjson.loads(elements))
    except (InvalidRequest, ValueError):
        return None
    return known.with_elements(raw) if len(raw) == known.size else None


def _is_worth_knowing(request: V2Request, body: bytes, elements: bytes) -> bool:
    """Whether the next request is likely to have the same text around its elements, and is then
    known to be the same but for them: they are one flat array of numbers, and nothing else of the
    text can be taken for it."""
    if len(request.tensors) > 1 or request.tensors[0].dtype == "BYTES" or request.id:
        return False
    if len(body) - len(elements) > KNOWN_BYTES or body.count(_DATA) > 1 or b"\\" in body:
        return False
    again = _with_elements(request, elements)
    return again is not None and again.tensors == request.tensors


def _parse(
    model: Model, version: str, body: bytes, header_length: bytes | None = None
) -> V2Request:
    document, tail, arrays = _split(body, header_length)
    parameters = _parameters(document)
    outputs = _outputs(model, document)
    tensors = _inputs(model, document, tail, arrays)
    check_model(model, tensors)
    return V2Request(model.name, version, _string(document, "id"), tensors, outputs, parameters)


def _raw_request(model: Model, version: str, body: bytes) -> V2Request:
    """The body is the only input's tensor, and nothing else: Triton's raw binary request. The shape
    is the declared one, with one row, and its open dimension follows from the body's length."""
    if len(model.inputs) != 1:
        raise InvalidRequest(
            f"a raw binary request is for models with one input, and model {model.name!r} has "
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
            f"a raw binary request can have only one open dimension, and input {name!r} has "
            f"shape {shape}: send it with its JSON header"
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
) -> tuple[Mapping[str, object], memoryview, Arrays | None]:
    """The JSON header, the binary tail, and the arrays cut out of the header."""
    length = len(body) if header_length is None else int(header_length)
    document, arrays = read_document(body if length == len(body) else body[:length])
    if not isinstance(document, dict):
        raise InvalidRequest("the body must be a JSON object with a list 'inputs'")
    return document, memoryview(body)[length:], arrays


def read_document(text: bytes) -> tuple[object, Arrays | None]:
    """The JSON document, and its long arrays of numbers, cut out of it."""
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
    tensors = []
    offset = 0
    for entry in entries:
        tensor, size = _input(entry, tail[offset:], arrays)
        tensors.append(tensor)
        offset += size
    if offset != len(tail):
        raise InvalidRequest(
            f"the body has {len(tail)} bytes after its JSON part, but the inputs' "
            f"binary_data_size add up to {offset}"
        )
    return tensors


def _input(entry: object, tail: memoryview, arrays: Arrays | None) -> tuple[Tensor, int]:
    """One tensor, and the number of bytes it took from the binary tail."""
    if not isinstance(entry, dict):
        raise InvalidRequest("each of 'inputs' must be an object")
    name, dtype = _string(entry, "name"), _string(entry, "datatype")
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


def _binary(name: str, entry: Mapping[str, object], size: object, tail: memoryview) -> memoryview:
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


def flatten(name: str, shape: tuple[int, ...], data: object) -> list[object]:
    """V2 data, flat or nested like the shape, as a flat list; raises InvalidRequest otherwise."""
    if not isinstance(data, list):
        raise InvalidRequest(f"input {quoted(name)} needs 'data' (a list) or binary_data_size")
    if data and not isinstance(data[0], list):
        return data
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


def _outputs(model: Model, document: Mapping[str, Any]) -> dict[str, Mapping[str, object]]:
    """The parameters of each requested output, by its name."""
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
        name, parameters = _string(entry, "name"), _parameters(entry)
        check_output(model, name, outputs)
        if CLASSIFICATION in parameters:
            _check_classification(name, parameters[CLASSIFICATION])
        outputs[name] = parameters
    return outputs


def _check_classification(name: str, value: object) -> None:
    """As in Triton: 0 is no classification, and more classes than there are means all of them."""
    if type(value) is not int or not 0 <= value < 2**64:
        raise InvalidRequest(
            f"output {name!r}: classification must be a number of classes, an integer of 0 or more"
        )


def check_output_count(model: Model, count: int) -> None:
    """Raise InvalidRequest for more outputs than the model has, before any work per output."""
    if count > len(model.outputs):
        raise InvalidRequest(
            f"the request asks for {count} outputs: model {model.name!r} has "
            f"{len(model.outputs)}: " + ", ".join(model.outputs)
        )


def check_output(model: Model, name: str, requested: Container[str]) -> None:
    """Raise InvalidRequest unless the model has this output, and it is not in ``requested``."""
    if name not in model.outputs:
        declared = ", ".join(model.outputs)
        raise InvalidRequest(
            f"model {model.name!r} has no output {quoted(name)}: it has {declared}"
        )
    if name in requested:
        raise InvalidRequest(f"output {name!r} is requested twice")


def refuse_shared_memory(parameters: Iterable[str]) -> None:
    """Raise InvalidRequest for parameters that name memory of other processes."""
    if any(key.startswith(REFUSED_PREFIX) for key in parameters):
        raise InvalidRequest(
            "shared memory cannot be used through the gateway: send the data itself"
        )


def _string(document: Mapping[str, object], key: str) -> str:
    value = document.get(key)
    if type(value) is str and value:
        return value
    if value is None and key == "id":
        return ""
    if not isinstance(value, str) or (key != "id" and not value):
        raise InvalidRequest(f"{key!r} must be a non-empty string")
    return value


def _parameters(document: Mapping[str, object]) -> Mapping[str, Any]:
    """The object's ``parameters``, as ``checked_parameters``."""
    value = document.get("parameters")
    if value is None:
        return {}
    return checked_parameters(value)


def checked_parameters(parameters: object, limit: int = MAX_PARAMETERS) -> Mapping[str, object]:
    """The parameters that are not null; raises InvalidRequest if they are not an object, are more
    than ``limit``, or name memory of other processes."""
    if not isinstance(parameters, dict):
        raise InvalidRequest("'parameters' must be an object")
    if len(parameters) > limit:
        raise InvalidRequest(f"there are {len(parameters)} parameters: send at most {limit}")
    refuse_shared_memory(parameters)
    return {key: value for key, value in parameters.items() if value is not None}
