"""Rows of a face -> as few inference requests as their shapes allow -> rows of the answer."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson
from tritonclient.grpc import service_pb2

from gateway.errors import Malformed, UpstreamBroke
from gateway.models.catalogue import Model
from gateway.models.face import Face, Row
from gateway.models.tensors import Tensor, check_model, message_of, pack, set_parameter, unpack

Tensors = Mapping[str, np.ndarray]


class Batch(NamedTuple):
    """One inference request and the places of its rows in the caller's list."""

    places: tuple[int, ...]
    message: service_pb2.ModelInferRequest


def batches(model: Model, face: Face, rows: Sequence[Row]) -> list[Batch]:
    """Group the rows that can share a request: equal shapes, equal parameters, at most a batch.

    Malformed when a row does not fit the model's tensors.
    """
    values = [face.values(row) for row in rows]
    groups: dict[bytes, list[int]] = {}
    for place, row in enumerate(rows):
        lengths = {name: len(flat) for name, flat in values[place].items()}
        key = orjson.dumps([lengths, face.parameters(row)], option=orjson.OPT_SORT_KEYS)
        groups.setdefault(key, []).append(place)
    size = model.max_batch_size or 1
    chunks = [g[at : at + size] for g in groups.values() for at in range(0, len(g), size)]
    return [
        Batch(
            tuple(places),
            _message(model, [values[p] for p in places], face.parameters(rows[places[0]])),
        )
        for places in chunks
    ]


def _message(
    model: Model, rows: Sequence[Mapping[str, list[Any]]], parameters: Mapping[str, Any]
) -> service_pb2.ModelInferRequest:
    """Equal rows, each its tensors' flat values, as one request."""
    flat = {name: [value for row in rows for value in row[name]] for name in rows[0]}
    tensors = [tensor_of(model, name, values, len(rows)) for name, values in flat.items()]
    check_model(model, tensors)
    message = message_of(model.name, tensors)
    for key, value in parameters.items():
        set_parameter(message.parameters, key, value)
    return message


def tensor_of(model: Model, name: str, flat: Sequence[Any], rows: int = 1) -> Tensor:
    """The input from the flat values of ``rows`` equal rows; Malformed when they do not fill it."""
    meta = model.inputs[name]
    shape = _shape(name, len(flat) // rows, meta.dims)
    if model.max_batch_size:
        shape = (rows, *shape)
    return Tensor(name, meta.dtype, shape, pack(name, meta.dtype, flat))


def _shape(name: str, length: int, dims: tuple[int, ...]) -> tuple[int, ...]:
    """The dims with their one open axis filled in."""
    fixed = math.prod(dim for dim in dims if dim != -1)
    shape = tuple(length // fixed if dim == -1 else dim for dim in dims) if fixed else dims
    if dims.count(-1) > 1 or math.prod(shape) != length:
        raise Malformed(f"field for tensor {name!r}: {length} values do not fill {list(dims)}")
    return shape


def read_tensors(response: service_pb2.ModelInferResponse, rows: int) -> Tensors:
    """The outputs by name, one row a request's row; UpstreamBroke when the counts differ."""
    tensors = {
        output.name: unpack(output.datatype, output.shape, raw)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    if any(len(values) != rows for values in tensors.values() if rows > 1):
        raise UpstreamBroke("the model answered with another number of rows: report this")
    return tensors
