"""Checks a gRPC inference request: the checks, and what Triton receives, are as over HTTP."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from gateway.api.grpc.elements import MAX_STRINGS, count_elements, too_many_strings
from gateway.api.grpc.wire import RequestParts
from gateway.api.v2.request import check_output, refuse_shared_memory
from gateway.errors import InvalidRequest
from gateway.models.catalogue import Model
from gateway.models.tensors import MAX_STRINGS as MAX_RAW_STRINGS
from gateway.models.tensors import (
    Tensor,
    check_count,
    check_model,
    check_names,
    check_shape,
    check_size,
)
from gateway.models.tensors import too_many_strings as too_many_raw_strings
from gateway.models.v2_request import CLASSIFICATION, DROPPED, DROPPED_PREFIX
from modelspec.dtypes import NUMERIC_TYPES

# The field of InferTensorContents for each datatype; FP16 and BF16 have none.
_CONTENTS_FIELDS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
FIELD_NUMBERS = {
    field.name: field.number for field in service_pb2.InferTensorContents.DESCRIPTOR.fields
}
# Makes Triton say when a stream has ended: Triton's own clients may set it.
_EMPTY_FINAL = "triton_enable_empty_final_response"
_NARROW = frozenset({"INT8", "INT16", "UINT8", "UINT16"})
MAX_NARROW = 2**17  # in a request: checking each takes 20 ms and blocks the event loop


def check_request(parts: RequestParts, model: Model) -> None:
    """Raise InvalidRequest unless the model takes this request; drop the parameters that Triton
    does not receive."""
    header = parts.header
    _drop_parameters(header.parameters)
    check_count(model, len(header.inputs))
    if header.inputs:
        check_names(model, [tensor.name for tensor in header.inputs])
    for tensor in header.inputs:
        refuse_shared_memory(tensor.parameters)
        tensor.ClearField("parameters")
    check_model(model, _tensors(header.inputs, parts))
    _check_outputs(model, header.outputs)


def timeout_s(parts: RequestParts) -> float | None:
    """V2's ``timeout`` (microseconds) in seconds; call it before ``check_request``, which drops
    the parameter."""
    parameters = parts.header.parameters
    timeout_us = parameters["timeout"].int64_param if "timeout" in parameters else 0
    return timeout_us / 1e6 if timeout_us > 0 else None


def _drop_parameters(parameters: Any) -> None:
    refuse_shared_memory(parameters)
    for key in list(parameters):
        if key in DROPPED or (key.startswith(DROPPED_PREFIX) and key != _EMPTY_FINAL):
            del parameters[key]


def _tensors(
    inputs: Sequence[service_pb2.ModelInferRequest.InferInputTensor], parts: RequestParts
) -> list[Tensor]:
    if not inputs:
        raise InvalidRequest("'inputs' must have at least one tensor")
    raws = parts.raws
    if raws and len(raws) != len(inputs):
        raise InvalidRequest(
            f"the request has {len(inputs)} inputs but {len(raws)} raw_input_contents"
        )
    tensors = [
        Tensor(
            entry.name,
            entry.datatype,
            check_shape(entry.name, list(entry.shape)),
            raws[index] if raws else b"",
        )
        for index, entry in enumerate(inputs)
    ]
    _check_scanned(tensors, is_raw=bool(raws))
    for index, (entry, tensor) in enumerate(zip(inputs, tensors, strict=True)):
        is_large, is_small = index in parts.contents, entry.HasField("contents")
        if (is_large and is_small) or (raws and (is_large or is_small)):
            raise InvalidRequest(
                f"input {entry.name!r} has both contents and raw_input_contents, or its contents "
                "twice: send them once"
            )
        if is_large:
            _check_large_contents(tensor, parts.contents[index])
        elif not raws:
            _check_contents(tensor, entry.contents)
        else:
            check_size(tensor)
    return tensors


def _check_scanned(tensors: Sequence[Tensor], *, is_raw: bool) -> None:
    """Raise InvalidRequest where a request has too many elements that are scanned one by one."""
    strings = narrow = 0
    for tensor in tensors:
        if tensor.dtype == "BYTES":
            strings += math.prod(tensor.shape)
            if is_raw and strings > MAX_RAW_STRINGS:
                raise too_many_raw_strings(tensor.name)
        elif tensor.dtype in _NARROW and not is_raw:
            narrow += math.prod(tensor.shape)
            if narrow > MAX_NARROW:
                raise InvalidRequest(
                    f"input {tensor.name!r}: a request can carry at most {MAX_NARROW} elements of "
                    f"8 and 16 bits in {_CONTENTS_FIELDS[tensor.dtype]}: send them in "
                    "raw_input_contents"
                )
    if not is_raw and strings > MAX_STRINGS:
        raise too_many_strings()


def _check_contents(tensor: Tensor, contents: service_pb2.InferTensorContents) -> None:
    """As ``check_size``, for elements that are protobuf values."""
    field = _contents_field(tensor)
    fields = {descriptor.name: values for descriptor, values in contents.ListFields()}
    values = fields.pop(field, ())
    expected = math.prod(tensor.shape)
    if fields or len(values) != expected:
        raise _wrong_count(tensor, field, expected, len(values))
    if tensor.dtype in _NARROW and values:
        _check_narrow(tensor, values)


def _check_large_contents(tensor: Tensor, contents: memoryview) -> None:
    """The same, without creating an object for each element."""
    field = _contents_field(tensor)
    expected = math.prod(tensor.shape)
    actual = count_elements(contents, field, FIELD_NUMBERS[field])
    if actual != expected:
        raise _wrong_count(tensor, field, expected, actual)
    if tensor.dtype in _NARROW:
        message = service_pb2.InferTensorContents.FromString(bytes(contents))
        _check_narrow(tensor, getattr(message, field))


def _contents_field(tensor: Tensor) -> str:
    field = _CONTENTS_FIELDS.get(tensor.dtype)
    if field is None:
        raise InvalidRequest(f"input {tensor.name!r}: send {tensor.dtype} in raw_input_contents")
    return field


def _wrong_count(tensor: Tensor, field: str, expected: int, actual: int) -> InvalidRequest:
    return InvalidRequest(
        f"input {tensor.name!r}: shape {list(tensor.shape)} {tensor.dtype} needs {expected} "
        f"elements in {field}, but the request carries {actual}"
    )


def _check_narrow(tensor: Tensor, values: Sequence[int]) -> None:
    bounds = np.iinfo(NUMERIC_TYPES[tensor.dtype])
    if min(values) < bounds.min or max(values) > bounds.max:
        raise InvalidRequest(f"input {tensor.name!r}: a value does not fit {tensor.dtype}")


def _check_outputs(
    model: Model, outputs: Iterable[service_pb2.ModelInferRequest.InferRequestedOutputTensor]
) -> None:
    names: set[str] = set()
    for output in outputs:
        check_output(model, output.name, names)
        names.add(output.name)
        refuse_shared_memory(output.parameters)
        for key in [key for key in output.parameters if key != CLASSIFICATION]:
            del output.parameters[key]
