"""The tensor firewall: a model gets exactly what it declares, checked before Triton sees a byte.

Elements travel as V2's raw little-endian bytes; each BYTES element is preceded by a 4-byte length.
"""

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson
from tritonclient.grpc import service_pb2

from gateway.errors import SHOWN, InvalidRequest, quoted
from gateway.http.large_json import not_json
from gateway.models.catalogue import Model, TensorMeta
from modelspec.dtypes import NUMERIC_TYPES, SIZE_BYTES
from modelspec.elements import decode

CODES = dict(zip(NUMERIC_TYPES, "?bhiqBHIQefd", strict=True))  # for ``struct``
FEW = 64  # up to this many elements, creating an array costs more than it saves
_LENGTH = struct.Struct("<I")
MAX_RANK = 16
MAX_STRINGS = 2**18  # counting them takes 0.1 s, during which the gateway serves nobody else
MAX_DIM = 2**31 - 1


class Tensor(NamedTuple):
    """A named tensor with its elements as V2's raw bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    raw: bytes | memoryview  # a memoryview where it is a part of a larger body


def message_of(model: str, tensors: Iterable[Tensor]) -> service_pb2.ModelInferRequest:
    """The inference request to Triton."""
    message = service_pb2.ModelInferRequest(model_name=model)
    add_inputs(message, tensors)
    return message


def add_inputs(message: service_pb2.ModelInferRequest, tensors: Iterable[Tensor]) -> None:
    for tensor in tensors:
        message.inputs.add(name=tensor.name, datatype=tensor.dtype, shape=tensor.shape)
        message.raw_input_contents.append(bytes(tensor.raw))


def set_parameter(parameters: Any, key: str, value: Any) -> None:
    """Add a request parameter to the protobuf map. Raises InvalidRequest for a value that it cannot
    hold."""
    value_type = type(value)
    if value_type is bool:
        parameters[key].bool_param = value
    elif value_type is int and -(2**63) <= value < 2**63:
        parameters[key].int64_param = value
    elif value_type is float:
        parameters[key].double_param = value
    elif value_type is str:
        parameters[key].string_param = value
    else:
        raise InvalidRequest(f"parameter {quoted(key)} must be a string, a number or a boolean")


def check_shape(name: str, shape: Any) -> tuple[int, ...]:
    """The shape as a tuple. Raises InvalidRequest for negative, fractional or absurd dimensions."""
    if not isinstance(shape, list) or len(shape) > MAX_RANK:
        raise InvalidRequest(
            f"input {quoted(name)}: shape must be a list of at most {MAX_RANK} integers"
        )
    for dim in shape:
        if type(dim) is not int or not 0 <= dim <= MAX_DIM:
            raise InvalidRequest(
                f"input {quoted(name)}: a dimension is {quoted(dim)}: dimensions are 0 to {MAX_DIM}"
            )
    return tuple(shape)


def check_size(tensor: Tensor) -> None:
    """Raises InvalidRequest unless the raw bytes hold exactly as many elements as the shape."""
    count = math.prod(tensor.shape)
    size = SIZE_BYTES.get(tensor.dtype)
    if size is None:
        actual, expected, unit = _count_strings(tensor, count), count, "strings"
    else:
        actual, expected, unit = len(tensor.raw), count * size, "bytes"
    if actual != expected:
        raise InvalidRequest(
            f"input {quoted(tensor.name)}: shape {list(tensor.shape)} {tensor.dtype[:SHOWN]} needs "
            f"{expected} {unit}, but the request carries {actual}"
        )


def check_model(model: Model, tensors: Sequence[Tensor]) -> None:
    """Raises InvalidRequest unless these tensors are what the model declares: names, dtypes,
    dimensions."""
    check_names(model, [tensor.name for tensor in tensors])
    for tensor in tensors:
        _check_declared(model, tensor, model.inputs[tensor.name])
    if len(tensors) == 1 or not model.max_batch_size:
        return
    rows = {tensor.shape[0] for tensor in tensors}
    if len(rows) > 1:
        raise InvalidRequest(f"the inputs have different numbers of rows: {sorted(rows)}")


def check_count(model: Model, inputs: int) -> None:
    """Raises InvalidRequest for more inputs than the model has, before any work is done for each
    of them."""
    if inputs > len(model.inputs):
        raise InvalidRequest(
            f"there are {inputs} inputs: model {model.name!r} takes at most {len(model.inputs)}: "
            + ", ".join(model.inputs)
        )


def check_names(model: Model, names: list[str]) -> None:
    """Raises InvalidRequest unless these are the model's inputs, each once; optional ones may be
    missing."""
    unique = set(names)
    if unique == model.inputs.keys() and len(unique) == len(names):
        return
    extra = next((name for name in names if name not in model.inputs), None)
    if extra is not None:
        declared = ", ".join(model.inputs)
        raise InvalidRequest(
            f"model {model.name!r} has no input {quoted(extra)}: it takes {declared}"
        )
    if len(unique) < len(names):
        duplicate = next(name for index, name in enumerate(names) if name in names[:index])
        raise InvalidRequest(f"input {duplicate!r} is sent twice: send it once")
    if len(unique) == len(model.inputs):
        return
    missing = [
        name for name, meta in model.inputs.items() if name not in unique and not meta.optional
    ]
    if missing:
        declared = ", ".join(model.inputs)
        raise InvalidRequest(
            f"input {missing[0]!r} is missing: model {model.name!r} takes {declared}"
        )


def _check_declared(model: Model, tensor: Tensor, meta: TensorMeta) -> None:
    if tensor.dtype != meta.dtype:
        raise InvalidRequest(f"input {tensor.name!r} is {meta.dtype}, not {tensor.dtype[:SHOWN]}")
    declared = ((-1, *meta.dims) if model.max_batch_size else meta.dims) or (1,)
    if not _fits(tensor.shape, declared):
        raise InvalidRequest(
            f"input {tensor.name!r}: shape {list(tensor.shape)} does not fit {list(declared)} "
            "(-1 is any length)"
        )
    if model.max_batch_size and not 1 <= tensor.shape[0] <= model.max_batch_size:
        raise InvalidRequest(
            f"input {tensor.name!r}: {tensor.shape[0]} rows, "
            f"but model {model.name!r} takes 1 to {model.max_batch_size}"
        )


def _fits(shape: Sequence[int], declared: Sequence[int]) -> bool:
    if len(shape) != len(declared):
        return False
    for dim, declared_dim in zip(shape, declared, strict=True):  # noqa: SIM110 - twice as fast
        if declared_dim not in (-1, dim):
            return False
    return True


def pack(name: str, dtype: str, values: Sequence[object]) -> bytes:
    """Flat JSON values as raw bytes. Raises InvalidRequest for a value that the dtype cannot
    hold."""
    if dtype == "BYTES":
        return _pack_strings(name, values)
    if dtype in ("FP16", "BF16"):
        raise InvalidRequest(
            f"input {quoted(name)}: {dtype} has no JSON form: send it as binary data"
        )
    try:
        numpy_dtype = NUMERIC_TYPES[dtype]
    except KeyError:
        raise InvalidRequest(
            f"input {quoted(name)}: there is no datatype {quoted(dtype)}"
        ) from None
    _check_types(name, dtype, values)
    try:
        if len(values) <= FEW:
            return struct.pack(f"<{len(values)}{CODES[dtype]}", *values)
        return _exact_array(values, numpy_dtype).tobytes()
    except (OverflowError, ValueError, TypeError, struct.error):
        raise InvalidRequest(f"input {quoted(name)}: a value does not fit {dtype}") from None


def _exact_array(values: Sequence[Any], dtype: Any) -> np.ndarray:
    """An array of ``dtype``. Raises OverflowError where numpy would wrap around or overflow to
    infinity."""
    if np.issubdtype(dtype, np.floating):
        floats = np.array(values, dtype=np.float64)
        if values and np.abs(floats).max() > np.finfo(dtype).max:
            raise OverflowError
        return floats.astype(dtype)
    if values and dtype != np.bool_:
        limits = np.iinfo(dtype)
        if min(values) < limits.min or max(values) > limits.max:
            raise OverflowError
    return np.array(values, dtype=dtype)


_TYPES: dict[str, frozenset[type]] = {
    "BOOL": frozenset({bool}),
    "FP32": frozenset({int, float}),
    "FP64": frozenset({int, float}),
}
_INTEGERS = frozenset({int})


def _check_types(name: str, dtype: str, values: Sequence[object]) -> None:
    wrong_types = set(map(type, values)) - _TYPES.get(dtype, _INTEGERS)
    if wrong_types:
        names = ", ".join(sorted(wrong.__name__ for wrong in wrong_types))
        raise InvalidRequest(f"input {quoted(name)}: {dtype} data must not contain {names}")


def _pack_strings(name: str, values: Sequence[object]) -> bytes:
    if len(values) > MAX_STRINGS:
        raise too_many_strings(name)
    parts: list[bytes] = []
    for value in values:
        if not isinstance(value, str | bytes):
            type_name = type(value).__name__
            raise InvalidRequest(
                f"input {quoted(name)}: BYTES data must be strings, not {type_name}"
            )
        encoded = value.encode() if isinstance(value, str) else value
        parts += (_LENGTH.pack(len(encoded)), encoded)
    return b"".join(parts)


def too_many_strings(name: str) -> InvalidRequest:
    return InvalidRequest(
        f"input {quoted(name)}: at most {MAX_STRINGS} strings: send fewer at once"
    )


# Reduces an array of numbers to its structure: brackets, commas, and '0' for all else.
_SKELETON = bytes(code if code in b"[]," else ord("0") for code in range(256))
_NO_BRACKETS = bytes.maketrans(b"[]", b"  ")
_SPACE = b" \t\r\n"
SLICE_BYTES = 64 * 1024


def pack_text(name: str, dtype: str, shape: tuple[int, ...], text: memoryview) -> bytes:
    """As ``pack``, for an array that is still JSON text, flat or nested like the shape.

    It is parsed in slices: there are never Python objects for more than a few of its values.
    """
    packed: list[bytes] = []
    nesting: list[bytes] = []
    at = 0
    while at < len(text):
        cells = bytes(text[at : at + SLICE_BYTES])
        if at + len(cells) < len(text):
            cells = cells[: cells.rfind(b",") + 1][:-1]
            if not cells:  # no value is that long
                raise InvalidRequest(f"input {quoted(name)}: 'data' is not a JSON array")
        bare = cells.translate(_SKELETON, _SPACE)
        if b"0[" in bare or b"]0" in bare:
            raise InvalidRequest(f"input {quoted(name)}: 'data' is not a JSON array")
        nesting.append(bare.translate(None, b"0"))
        try:
            values = orjson.loads(b"".join((b"[", cells.translate(_NO_BRACKETS), b"]")))
        except orjson.JSONDecodeError as error:
            raise not_json(error, cells) from None
        packed.append(pack(name, dtype, values))
        at += len(cells) + 1
    _check_nesting(name, shape, b",".join(nesting))
    return b"".join(packed)


def _check_nesting(name: str, shape: tuple[int, ...], nesting: bytes) -> None:
    """Raises InvalidRequest unless these brackets and commas are those of a flat array, or of the
    shape."""
    depth = len(nesting) - len(nesting.lstrip(b"["))
    if depth == 1 and nesting.count(b"[") == nesting.count(b"]") == 1 and nesting[-1:] == b"]":
        return
    expected = b""
    if depth <= len(shape):
        for dim in reversed(shape[:depth]):
            if dim * (len(expected) + 1) > len(nesting):
                break
            expected = b"".join((b"[", (expected + b",") * dim)).removesuffix(b",") + b"]"
    if expected != nesting:
        raise InvalidRequest(f"input {quoted(name)}: 'data' is not nested like shape {list(shape)}")


def _count_strings(tensor: Tensor, expected: int) -> int:
    """How many length-prefixed strings the raw bytes hold, counted up to ``expected + 1``. Raises
    InvalidRequest if the last one is cut off."""
    if expected > MAX_STRINGS:
        raise too_many_strings(tensor.name)
    raw, at, count = tensor.raw, 0, 0
    while at + 4 <= len(raw) and count <= expected:
        at += 4 + _LENGTH.unpack_from(raw, at)[0]
        count += 1
    if at > len(raw) or (at < len(raw) and count <= expected):
        raise InvalidRequest(
            f"input {quoted(tensor.name)}: the BYTES data is cut off: each string is preceded by "
            "its length as 4 little-endian bytes"
        )
    return count


def unpack(dtype: str, shape: Sequence[int], raw: bytes) -> np.ndarray:
    """Raw bytes of an output as an array; BYTES become an object array of ``bytes``."""
    return decode(dtype, raw).reshape(tuple(shape))
