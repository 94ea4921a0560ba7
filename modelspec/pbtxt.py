"""ModelSpec <-> Triton's ModelConfig protobuf <-> config.pbtxt.

Protos are built as objects and printed with ``text_format``; no pbtxt is ever formatted by hand.

    >>> print(render(to_proto(spec)))
"""

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as config

from modelspec.dtypes import element_type
from modelspec.model import ModelSpec, StepSpec, TensorSpec
from modelspec.parameters import (
    DETERMINISTIC_PARAMETER,
    ENDPOINT_PARAMETER,
    GOLDEN_PARAMETER,
    INTERNAL_PARAMETER,
)


def to_proto(spec: ModelSpec) -> config.ModelConfig:
    """The ModelConfig that Triton should serve this spec with."""
    proto = config.ModelConfig(name=spec.name, max_batch_size=spec.max_batch_size)
    proto.input.extend(
        config.ModelInput(
            name=tensor.name,
            data_type=_data_type(tensor),
            dims=tensor.dims,
            optional=tensor.optional,
        )
        for tensor in spec.inputs
    )
    proto.output.extend(
        config.ModelOutput(name=tensor.name, data_type=_data_type(tensor), dims=tensor.dims)
        for tensor in spec.outputs
    )
    for tensor, tensor_proto in zip(
        (*spec.inputs, *spec.outputs), (*proto.input, *proto.output), strict=True
    ):
        if tensor.flat:
            tensor_proto.reshape.SetInParent()
    for key, value in _parameters(spec).items():
        proto.parameters[key].string_value = value
    if spec.versions:
        proto.version_policy.specific.versions.extend(spec.versions)
    if spec.decoupled:
        proto.model_transaction_policy.decoupled = True
    if spec.steps:
        proto.platform = "ensemble"
        proto.ensemble_scheduling.step.extend(_step(step) for step in spec.steps)
    else:
        _set_backend(proto, spec)
    return proto


def render(proto: config.ModelConfig) -> str:
    """Text that parses back to the same proto, with ``max_batch_size: 0`` written out.

    Proto3's printer drops zeros, and Triton's auto-complete would then choose a batch size.
    """
    text = str(text_format.MessageToString(proto, as_utf8=True))
    return text if proto.max_batch_size else f"max_batch_size: 0\n{text}"


def parse(text: str) -> config.ModelConfig:
    """The proto in a config.pbtxt; ValueError names the line that is wrong."""
    try:
        return text_format.Parse(text, config.ModelConfig())
    except text_format.ParseError as error:
        raise ValueError(f"config.pbtxt does not parse: {error}") from error


def _data_type(tensor: TensorSpec) -> int:
    return int(config.DataType.Value(element_type(tensor.dtype).config_name))


def _parameters(spec: ModelSpec) -> dict[str, str]:
    parameters = dict(spec.parameters)
    if spec.endpoint_schema and spec.golden:
        parameters[ENDPOINT_PARAMETER] = spec.endpoint_schema.to_json()
        parameters[GOLDEN_PARAMETER] = spec.golden.to_json()
    if spec.deterministic:
        parameters[DETERMINISTIC_PARAMETER] = "true"
    if spec.internal:
        parameters[INTERNAL_PARAMETER] = "true"
    return parameters


def _step(step: StepSpec) -> config.ModelEnsembling.Step:
    return config.ModelEnsembling.Step(
        model_name=step.model,
        model_version=step.version,
        input_map=dict(step.inputs),
        output_map=dict(step.outputs),
    )


def _set_backend(proto: config.ModelConfig, spec: ModelSpec) -> None:
    proto.backend = spec.backend
    proto.instance_group.add(
        count=spec.instances.count,
        kind=config.ModelInstanceGroup.Kind.Value(spec.instances.kind),
    )
    if spec.batching:
        # Set even when it is all defaults: its presence switches batching on.
        proto.dynamic_batching.SetInParent()
        proto.dynamic_batching.max_queue_delay_microseconds = spec.batching.queue_delay_us
