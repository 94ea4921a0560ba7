"""Renders Triton's response for V2 over HTTP, each output as JSON or in the binary tail."""

import math
from typing import Any

import numpy as np
import orjson
from tritonclient.grpc import service_pb2

from gateway.errors import InvalidRequest
from gateway.http.json_body import LARGE_BYTES, SLICE, array_slices
from gateway.models.sequences import ENSEMBLE_PARAMETERS
from gateway.models.tensors import FEW, unpack
from gateway.models.v2_request import V2Request, not_finite
from gateway.render import Reply


def is_large(request: V2Request, response: service_pb2.ModelInferResponse) -> bool:
    """Whether ``render`` would block the event loop for too long."""
    return response.ByteSize() > LARGE_BYTES and not all(
        request.wants_binary(output.name) for output in response.outputs
    )


def render(request: V2Request, response: service_pb2.ModelInferResponse) -> Reply:
    """The reply; raises InvalidRequest for an output requested as JSON that JSON cannot carry."""
    document: dict[str, Any] = {
        "model_name": response.model_name,
        "model_version": response.model_version,
    }
    if response.id:
        document["id"] = response.id
    parameters = _parameters(response)
    if parameters:
        document["parameters"] = parameters
    tail: list[bytes] = []
    entries = [
        _output(request, output, raw, tail)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    ]
    if any(len(entry.get("data", ())) > SLICE for entry in entries):
        header = _in_slices(document, entries)
    else:
        document["outputs"] = entries
        header = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not tail:
        return Reply(200, header)
    headers = [(b"inference-header-content-length", str(len(header)).encode())]
    return Reply(200, b"".join([header, *tail]), b"application/octet-stream", headers)


def _in_slices(document: dict[str, Any], entries: list[dict[str, Any]]) -> bytes:
    """The whole document as JSON, without a single call that takes as long as all of it."""
    parts = [orjson.dumps(document)[:-1], b',"outputs":[']
    for index, entry in enumerate(entries):
        data = entry.pop("data", None)
        parts += (b"," if index else b"", orjson.dumps(entry)[:-1])
        if data is not None:
            parts += (b',"data":', *array_slices(data))
        parts.append(b"}")
    return b"".join((*parts, b"]}"))


def _output(request: V2Request, output: Any, raw: bytes, tail: list[bytes]) -> dict[str, Any]:
    shape = list(output.shape)
    entry: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": shape}
    if request.wants_binary(output.name):
        tail.append(raw)
        entry["parameters"] = {"binary_data_size": len(raw)}
    else:
        entry["data"] = json_data(output.name, output.datatype, shape, raw)
    return entry


def json_data(name: str, dtype: str, shape: list[int], raw: bytes) -> Any:
    """An output's elements, flat, as JSON can carry them."""
    if dtype == "BF16":
        raise InvalidRequest(
            f"output {name!r} is BF16, which JSON cannot carry: ask for binary_data"
        )
    values = unpack(dtype, shape, raw).reshape(-1)
    if dtype == "BYTES":
        return _texts(name, values)
    if dtype == "FP16":
        values = values.astype(np.float32)
    if values.dtype.kind == "f" and not _all_finite(values):
        raise not_finite(name)
    return values


def _all_finite(values: np.ndarray) -> bool:
    if values.size <= FEW:
        return all(map(math.isfinite, values.tolist()))
    return bool(np.isfinite(values).all())


def _texts(name: str, values: np.ndarray) -> list[str]:
    try:
        return [value.decode() for value in values]
    except UnicodeDecodeError:
        raise InvalidRequest(
            f"output {name!r} is not text, which JSON cannot carry: ask for binary_data"
        ) from None


def _parameters(response: service_pb2.ModelInferResponse) -> dict[str, Any]:
    return {
        key: getattr(value, value.WhichOneof("parameter_choice"))
        for key, value in response.parameters.items()
        if key not in ENSEMBLE_PARAMETERS and not key.startswith("triton_")
    }
