"""gRPC's inference messages over HTTP/1.1: V2's binary extension in both directions.

So nothing but the transport differs: what reads a response does not know which way it came.
"""

from functools import lru_cache

import orjson
from tritonclient.grpc import service_pb2

from gateway.models.tensors import set_parameter
from gateway.models.v2_request import Form


def is_short(request: service_pb2.ModelInferRequest, short_bytes: int) -> bool:
    """Whether its tensors have no more than so many bytes together, and it has nothing else that
    would have to be sent: parameters (as a sequence's), or classifications."""
    if request.parameters or sum(map(len, request.raw_input_contents)) > short_bytes:
        return False
    if len(request.raw_input_contents) != len(request.inputs):
        return False
    return not any(output.parameters for output in request.outputs)


def form_of(request: service_pb2.ModelInferRequest) -> Form:
    """All but the id and the elements of a request that ``is_short``."""
    return (
        request.model_name,
        request.model_version,
        tuple(
            [
                (tensor.name, tensor.datatype, tuple(tensor.shape), len(raw))
                for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
            ]
        ),
        tuple([(output.name, True) for output in request.outputs]),
        True,
    )


def read_response(body: bytes, json_length: int | None) -> service_pb2.ModelInferResponse:
    """The response whose outputs are all binary. Raises ValueError if it is not one."""
    offset = len(body) if json_length is None else json_length
    described, sizes = _described(body[:offset])
    message = service_pb2.ModelInferResponse()
    message.CopyFrom(described)
    for size in sizes:
        message.raw_output_contents.append(body[offset : offset + size])
        offset += size
    if offset != len(body):
        raise ValueError(f"the outputs have {offset} bytes, and the response {len(body)}")
    return message


@lru_cache(256)  # most responses of a model differ in their elements alone
def _described(header: bytes) -> tuple[service_pb2.ModelInferResponse, tuple[int, ...]]:
    """The response without the outputs' elements, and how many bytes of these follow."""
    try:
        document = orjson.loads(header)
        message = service_pb2.ModelInferResponse(
            model_name=document["model_name"],
            model_version=document["model_version"],
            id=document.get("id", ""),
        )
        for key, value in document.get("parameters", {}).items():
            set_parameter(message.parameters, key, value)
        sizes = []
        for output in document["outputs"]:
            message.outputs.add(
                name=output["name"], datatype=output["datatype"], shape=output["shape"]
            )
            sizes.append(output["parameters"]["binary_data_size"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not the JSON header of a response: {error!r}") from error
    return message, tuple(sizes)
