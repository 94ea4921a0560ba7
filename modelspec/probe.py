"""A golden sample as the request that asks a model for it, and the reading of what it answers.

Whoever probes a model (publisher, watcher, gateway) sends this request, each in its own way, and
gives the responses to a ``ProbeResponse``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2
from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.dtypes import protocol_name
from modelspec.elements import decode, encode, filled
from modelspec.endpoint_schema import Body, EndpointSchema, InvalidBase64
from modelspec.golden import Golden, unusable

_PARAMETER_FIELDS: Mapping[type, str] = {
    bool: "bool_param",
    int: "int64_param",
    float: "double_param",
    str: "string_param",
}


@dataclass(frozen=True)
class Probe:
    """``request`` is the golden sample's row, for the model whose config it was read from."""

    golden: Golden
    request: service_pb2.ModelInferRequest

    @classmethod
    def of(cls, config: ModelConfig, endpoint: EndpointSchema, golden: Golden) -> "Probe":
        """DeclarationError if the sample does not fit the endpoint or the model."""
        golden.require_bound(endpoint.fields, {tensor.name for tensor in config.output})
        for tensor in config.output:
            dtype = protocol_name(tensor.data_type)
            if tensor.name in golden.expect and dtype in ("BF16", "INVALID"):
                raise unusable(f"expects values of the {dtype} output {tensor.name!r}")
        try:
            request = infer_request(config, endpoint, golden.request)
        except InvalidBase64 as error:
            raise unusable(
                f'must have {{"b64": "..."}} in the field {error.field!r}, in base64'
            ) from None
        except (TypeError, ValueError, OverflowError) as error:
            raise unusable(f"does not fit the model's inputs: {error}") from None
        sent = {tensor.name for tensor in request.inputs}
        for tensor in config.input:
            if tensor.name not in sent and not tensor.optional:
                raise unusable(f"does not fit the model's inputs: {tensor.name!r} gets no value")
        return cls(golden, request)

    def request_to(self, model: str) -> service_pb2.ModelInferRequest:
        """The request, for a model with the same tensors, such as a candidate."""
        return addressed_to(self.request, model)


class ProbeResponse:
    """What a model answers to a probe. The responses of a decoupled model are joined."""

    def __init__(self, golden: Golden) -> None:
        self._golden = golden
        self._outputs: dict[str, list[Any]] = {}
        self._fault = ""

    def add(self, response: service_pb2.ModelInferResponse) -> None:
        """Read the outputs that the sample expects; others may be of any type."""
        raw_contents = response.raw_output_contents
        if len(raw_contents) != len(response.outputs):
            self._fault = "answers its golden sample without raw contents"
            return
        for output, raw in zip(response.outputs, raw_contents, strict=True):
            if output.name not in self._golden.expect:
                continue
            try:
                values = decode(output.datatype, raw).tolist()
            except ValueError as error:
                self._fault = f"answers its golden sample unreadably in {output.name} ({error})"
                return
            self._outputs.setdefault(output.name, []).extend(values)

    @property
    def is_complete(self) -> bool:
        """Whether there is enough to judge: a stream need not be read further."""
        return bool(self._fault) or self._golden.is_answered(self._outputs)

    def fault(self) -> str:
        """'' if the model answered as expected, else what is wrong."""
        return self._fault or self._golden.fault(self._outputs)


def infer_request(
    config: ModelConfig, endpoint: EndpointSchema, body: Body
) -> service_pb2.ModelInferRequest:
    """The request of one row to the config's model. TypeError or ValueError if a value does not fit
    its tensor, or a parameter cannot be one; a tensor that ``body`` does not fill is left out."""
    values = endpoint.values(body)
    request = service_pb2.ModelInferRequest(model_name=config.name)
    for tensor in config.input:
        if tensor.name not in values:
            continue
        row, dtype = values.pop(tensor.name), protocol_name(tensor.data_type)
        shape = filled(tensor.dims, len(row))
        if config.max_batch_size:
            shape = (1, *shape)
        request.inputs.add(name=tensor.name, datatype=dtype, shape=shape)
        request.raw_input_contents.append(encode(dtype, row))
    if values:
        raise ValueError(f"the model has no input {min(values)!r}")
    for name, parameter in endpoint.parameters(body).items():
        if type(parameter) not in _PARAMETER_FIELDS:
            raise TypeError(f"the parameter {name!r} is not a string, a number or a boolean")
        setattr(request.parameters[name], _PARAMETER_FIELDS[type(parameter)], parameter)
    return request


def addressed_to(
    request: service_pb2.ModelInferRequest, model: str
) -> service_pb2.ModelInferRequest:
    """A copy of the request for another model."""
    copy = service_pb2.ModelInferRequest()
    copy.CopyFrom(request)
    copy.model_name = model
    return copy


def outputs_of(response: service_pb2.ModelInferResponse) -> dict[str, list[Any]]:
    """The elements of every output, flat; ValueError if one cannot be read."""
    pairs = zip(response.outputs, response.raw_output_contents, strict=True)
    return {output.name: decode(output.datatype, raw).tolist() for output, raw in pairs}
