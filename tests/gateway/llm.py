"""A model that follows the contract of Triton's vLLM backend, as in the catalogue."""

from tritonclient.grpc import service_pb2

from gateway.models.catalogue import Model, TensorMeta
from gateway.models.tensors import pack

_FLAGS = (
    "stream",
    "exclude_input_in_output",
    "return_finish_reason",
    "return_num_input_tokens",
    "return_num_output_tokens",
    "return_logprobs",
)
_INPUTS = {
    "text_input": TensorMeta("text_input", "BYTES", (1,), True),
    "conversation": TensorMeta("conversation", "BYTES", (1,), True),
    "token_ids": TensorMeta("token_ids", "INT32", (-1,), True),
    "sampling_parameters": TensorMeta("sampling_parameters", "BYTES", (1,), True),
    **{name: TensorMeta(name, "BOOL", (1,), True) for name in _FLAGS},
}
_OUTPUTS = {
    "text_output": "BYTES",
    "finish_reason": "BYTES",
    "num_input_tokens": "UINT32",
    "num_output_tokens": "UINT32",
    "num_cached_tokens": "UINT32",
    "logprobs": "BYTES",
}
MODEL = Model(
    name="llm",
    versions=("1",),
    max_batch_size=0,
    inputs=_INPUTS,
    outputs={name: TensorMeta(name, dtype, (-1,)) for name, dtype in _OUTPUTS.items()},
    decoupled=True,
    endpoint_schema=None,
    probe=None,
)


def response(**outputs) -> service_pb2.ModelInferResponse:
    """One of its responses, with one element per output; bytes for BYTES. As the backend has it,
    the count of the prompt's tokens has no dimension."""
    message = service_pb2.ModelInferResponse(model_name="llm")
    for name, value in outputs.items():
        dtype = _OUTPUTS[name]
        message.outputs.add(
            name=name, datatype=dtype, shape=[] if name == "num_input_tokens" else [1]
        )
        message.raw_output_contents.append(pack(name, dtype, [value]))
    return message
