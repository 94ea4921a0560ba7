"""Rows of a face -> as few inference requests as their shapes allow -> rows of the answer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from tritonclient.grpc import service_pb2

from gateway.doors.v2_request import set_parameter
from gateway.errors import Malformed, UpstreamBroke
from gateway.models.catalogue import Model
from gateway.models.face import Face, Row
from gateway.models.tensors import Tensor, check_model, message_of, pack, unpack

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Batch:
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
    return [
        _batch(model, face, rows, values, tuple(places[start : start + size]))
        for places in groups.values()
        for start in range(0, len(places), size)
    ]


def _batch(
    model: Model,
    face: Face,
    rows: Sequence[Row],
    values: Sequence[Mapping[str, list[Any]]],
    places: tuple[int, ...],
) -> Batch:
    tensors = [_tensor(model, name, values, places) for name in values[places[0]]]
    check_model(model, tensors)
    message = message_of(model.name, tensors)
    for key, value in face.parameters(rows[places[0]]).items():
        set_parameter(message.parameters, key, value)
    return Batch(places, message)


def _tensor(
    model: Model,
    name: str,
    values: Sequence[Mapping[str, list[Any]]],
    places: Sequence[int],
) -> Tensor:
    flat = [value for place in places for value in values[place][name]]
    return tensor_of(model, name, flat, rows=len(places))


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
