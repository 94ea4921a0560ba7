"""Probe a model with its golden sample, straight at Triton: the only proof that it is alive and
right.

The sample, and the endpoint schema that maps fields to tensors, travel in the model's own config,
so any pipeline can be probed, even a candidate under another name.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from modelspec.dtypes import element_type
from modelspec.golden import Golden, GoldenError, probe_time_s
from modelspec.parameters import ENDPOINT_PARAMETER, GOLDEN_PARAMETER
from serving.errors import NoAnswerInTime, ServingError
from serving.triton.control import TritonControl

NO_ANSWER, IS_LATE = "does not answer its golden sample", " in time"
_NAMES = {"TYPE_STRING": "BYTES"}
_PARAMETER_FIELDS: Mapping[type, str] = {
    bool: "bool_param",
    int: "int64_param",
    float: "double_param",
}


@dataclass(frozen=True)
class Sample:
    """The golden sample, its one row by tensor name, and its request parameters."""

    golden: Golden
    tensors: Mapping[str, Any]
    parameters: Mapping[str, str | bool | int | float]


def sample_of(config: ModelConfig) -> Sample | None:
    """The golden sample in a config; None for a model without one, GoldenError for one that cannot
    be used."""
    parameters = config.parameters
    if GOLDEN_PARAMETER not in parameters or ENDPOINT_PARAMETER not in parameters:
        return None
    golden = Golden.parse(parameters[GOLDEN_PARAMETER].string_value)
    fields = request_fields(config)
    golden.require_bound(fields, {tensor.name: tensor for tensor in config.output})
    try:
        tensors, request_parameters = bound(fields, golden.request)
        infer_request(config.name, config, tensors, request_parameters)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise GoldenError(f"does not fit the model's inputs: {error}") from None
    return Sample(golden, tensors, request_parameters)


def request_fields(config: ModelConfig) -> dict[str, Any]:
    """The schemas of one request's fields, by name, from the endpoint schema in the config;
    GoldenError if it cannot be read."""
    try:
        endpoint_schema = json.loads(config.parameters[ENDPOINT_PARAMETER].string_value)
        fields: dict[str, Any] = endpoint_schema["request"].get("properties", {})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise GoldenError(f"has an endpoint schema that cannot be read: {error}") from None
    return fields


def bound(
    fields: Mapping[str, Any], body: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str | bool | int | float]]:
    """One row by tensor name, and the request parameters, of a request in the endpoint schema's
    form."""
    tensors, parameters = {}, {}
    for name, value in body.items():
        schema = fields[name]
        if "x-tensor" in schema:
            tensors[schema["x-tensor"]] = _plain(value, schema)
        elif "x-parameter" in schema:
            parameters[schema["x-parameter"]] = value
    return tensors, parameters


def fault(
    control: TritonControl, model: str, config: ModelConfig, timeout_s: float | None = None
) -> str:
    """'' if the model has no golden sample or gives the golden answer now, else what is wrong.

    A fault that ends with ``IS_LATE`` only says that there was no answer in ``timeout_s`` seconds
    (by default the time of a model that was never measured), or that the model's queue was full.
    """
    timeout_s = probe_time_s(None) if timeout_s is None else timeout_s
    try:
        sample = sample_of(config)
    except GoldenError as error:
        return f"has a golden sample that {error}"
    if sample is None:
        return ""
    outputs: dict[str, list[Any]] = {}
    request = infer_request(model, config, sample.tensors, sample.parameters)
    try:
        if config.model_transaction_policy.decoupled:
            for response in control.stream_infer(request, timeout_s):
                _add(outputs, response)
        else:
            _add(outputs, control.infer(request, timeout_s))
    except NoAnswerInTime:
        return NO_ANSWER + IS_LATE
    except ServingError as error:
        return f"{NO_ANSWER} ({error})"
    return sample.golden.fault(outputs)


def _add(outputs: dict[str, list[Any]], response: service_pb2.ModelInferResponse) -> None:
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        outputs.setdefault(output.name, []).extend(values_of(output.datatype, raw))


def _plain(value: Any, schema: Mapping[str, Any]) -> Any:
    return base64.b64decode(value["b64"]) if schema.get("x-bytes") else value


def infer_request(
    model: str,
    config: ModelConfig,
    tensors: Mapping[str, Any],
    parameters: Mapping[str, str | bool | int | float],
) -> service_pb2.ModelInferRequest:
    """A request of one row for ``model``, whose inputs are those of ``config``."""
    request = service_pb2.ModelInferRequest(model_name=model)
    for tensor in config.input:
        if tensor.name not in tensors:
            continue
        value = tensors[tensor.name]
        row = value if isinstance(value, list) else [value]
        name = DataType.Name(tensor.data_type)
        datatype = _NAMES.get(name, name.removeprefix("TYPE_"))
        shape = [1, len(row)] if config.max_batch_size else [len(row)]
        request.inputs.add(name=tensor.name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(_raw(datatype, row))
    for key, parameter in parameters.items():
        field = _PARAMETER_FIELDS.get(type(parameter), "string_param")
        setattr(request.parameters[key], field, parameter)
    return request


def _raw(datatype: str, row: list[Any]) -> bytes:
    if datatype != "BYTES":
        return np.array(row, dtype=element_type(datatype).numpy).tobytes()
    encoded = [value if isinstance(value, bytes) else str(value).encode() for value in row]
    return bytes(serialize_byte_tensor(np.array(encoded, dtype=np.object_)).item())


def values_of(datatype: str, raw: bytes) -> list[Any]:
    if datatype != "BYTES":
        return list(np.frombuffer(raw, dtype=element_type(datatype).numpy))
    return [value.decode("utf-8", "replace") for value in deserialize_bytes_tensor(raw)]
