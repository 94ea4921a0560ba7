"""Rows of an endpoint schema -> as few inference requests as their shapes allow -> output rows."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, ParamSpec, TypeVar

import numpy as np
import orjson
from tritonclient.grpc import service_pb2

from gateway.errors import InvalidRequest, UpstreamError
from gateway.models.catalogue import Model
from gateway.models.compiled_endpoint import CompiledEndpoint, Row
from gateway.models.tensors import (
    Tensor,
    check_model,
    message_of,
    pack,
    pack_text,
    set_parameter,
    unpack,
)
from modelspec.dtypes import SIZE_BYTES
from modelspec.elements import filled

P = ParamSpec("P")
T = TypeVar("T")
Tensors = Mapping[str, np.ndarray]


class Batch(NamedTuple):
    """One inference request, and the indices of its rows in the caller's list."""

    row_indices: tuple[int, ...]
    message: service_pb2.ModelInferRequest


def batches(model: Model, endpoint_schema: CompiledEndpoint, rows: Sequence[Row]) -> list[Batch]:
    """Group the rows that can share a request: equal shapes, equal parameters, at most a batch.

    Raises InvalidRequest, which names the row, if one does not fit the model's tensors.
    """
    values = [_naming_row(index, endpoint_schema.values, row) for index, row in enumerate(rows)]
    if len(rows) == 1:  # nothing to group
        parameters = endpoint_schema.parameters(rows[0])
        return [Batch((0,), _batch_message(model, (0,), values, parameters))]
    groups: dict[bytes, list[int]] = {}
    for index, row in enumerate(rows):
        lengths = {name: len(flat) for name, flat in values[index].items()}
        key = orjson.dumps([lengths, endpoint_schema.parameters(row)], option=orjson.OPT_SORT_KEYS)
        groups.setdefault(key, []).append(index)
    size = model.max_batch_size or 1
    result: list[Batch] = []
    for group in groups.values():
        for start in range(0, len(group), size):
            row_indices = group[start : start + size]
            parameters = endpoint_schema.parameters(rows[row_indices[0]])
            message = _batch_message(model, row_indices, values, parameters)
            result.append(Batch(tuple(row_indices), message))
    return result


def _batch_message(
    model: Model,
    row_indices: Sequence[int],
    values: Sequence[Mapping[str, list[object]]],
    parameters: Mapping[str, object],
) -> service_pb2.ModelInferRequest:
    try:
        return _message(model, [values[index] for index in row_indices], parameters)
    except InvalidRequest:
        for index in row_indices:
            _naming_row(index, _message, model, [values[index]], parameters)
        raise


def _naming_row(index: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call ``work``; its InvalidRequest is raised with the row's index."""
    try:
        return work(*args, **kwargs)
    except InvalidRequest as error:
        raise error.at_row(index) from None


def _message(
    model: Model, rows: Sequence[Mapping[str, list[object]]], parameters: Mapping[str, object]
) -> service_pb2.ModelInferRequest:
    """Rows of equal shapes, each as its tensors' flat values, as one request."""
    flat = {name: [value for row in rows for value in row[name]] for name in rows[0]}
    tensors = [tensor_of(model, name, values, len(rows)) for name, values in flat.items()]
    check_model(model, tensors)
    message = message_of(model.name, tensors)
    for key, value in parameters.items():
        set_parameter(message.parameters, key, value)
    return message


def tensor_of(model: Model, name: str, flat: Sequence[object], rows: int = 1) -> Tensor:
    """The input tensor from the flat values of ``rows`` equal rows. Raises InvalidRequest if they
    do not fill its shape."""
    meta = model.inputs[name]
    shape = _shape(name, len(flat) // rows, meta.dims)
    if model.max_batch_size:
        shape = (rows, *shape)
    return Tensor(name, meta.dtype, shape, pack(name, meta.dtype, flat))


def tensor_of_text(model: Model, name: str, text: memoryview) -> Tensor:
    """As ``tensor_of``, for a flat array that is still JSON text."""
    meta = model.inputs[name]
    raw = pack_text(name, meta.dtype, (), text)
    shape = _shape(name, len(raw) // SIZE_BYTES[meta.dtype], meta.dims)
    return Tensor(name, meta.dtype, (1, *shape) if model.max_batch_size else shape, raw)


def _shape(name: str, length: int, dims: tuple[int, ...]) -> tuple[int, ...]:
    """The dims with their one variable axis filled in."""
    try:
        return filled(dims, length)
    except ValueError as error:
        raise InvalidRequest(f"field for tensor {name!r}: {error}") from None


def read_tensors(response: service_pb2.ModelInferResponse, rows: int) -> Tensors:
    """The outputs by name, with one row for each row of the request. Raises UpstreamError if the
    numbers of rows differ."""
    tensors = {
        output.name: unpack(output.datatype, output.shape, raw)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    if any(len(values) != rows for values in tensors.values() if rows > 1):
        raise UpstreamError("the model returned a different number of rows: report this")
    return tensors


class RowTokens(NamedTuple):
    """The tokens of a request's rows, which are all input."""

    input_tokens: int | None
    output_tokens: int | None = None


def count_tokens(model: Model, results: Sequence[tuple[Tensors, int]]) -> RowTokens:
    """What the model counted in the batches that contain the rows."""
    batch_tensors = {id(tensors): tensors for tensors, _ in results}
    counts = []
    for tensors in batch_tensors.values():
        for name in model.tokens.names:
            if name in tensors:
                count = tensors[name]
                counts.append(count.item() if count.size == 1 else int(count.sum()))
    return RowTokens(sum(counts) if counts else None)


def size_of(results: Sequence[tuple[Tensors, int]]) -> int:
    """Bytes of the tensors that contain the rows; strings count as the references to them."""
    batch_tensors = {id(tensors): tensors for tensors, _ in results}
    return sum(values.nbytes for tensors in batch_tensors.values() for values in tensors.values())
