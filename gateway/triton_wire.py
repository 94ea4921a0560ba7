"""Triton's gRPC messages as HTTP/1.1: the Open Inference Protocol with binary tensors."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import orjson
from tritonclient.grpc import service_pb2

JSON_LENGTH, LENGTH = b"inference-header-content-length", b"content-length"


class TritonRefused(Exception):
    """Triton answered with an HTTP error; ``status`` and ``details`` are its own."""

    def __init__(self, status: int, details: str) -> None:
        super().__init__(details)
        self.status, self.details = status, details


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[bytes, bytes]
    body: bytes


def is_plain(request: service_pb2.ModelInferRequest) -> bool:
    """Whether ``encode`` carries all of it: tensors and an id, no parameters anywhere."""
    return not request.parameters and not any(output.parameters for output in request.outputs)


def encode(request: service_pb2.ModelInferRequest, host: str) -> bytes:
    """A plain request, whole; every output is asked for in binary."""
    raw = request.raw_input_contents
    inputs = [
        _described(tensor, len(data)) for tensor, data in zip(request.inputs, raw, strict=True)
    ]
    document: dict[str, Any] = {"inputs": inputs, "parameters": {"binary_data_output": True}}
    if request.id:
        document["id"] = request.id
    if request.outputs:
        document["outputs"] = [{"name": output.name} for output in request.outputs]
    header = orjson.dumps(document)
    size = len(header) + sum(map(len, raw))
    head = (
        f"POST {_path(request)} HTTP/1.1\r\nHost: {host}\r\n"
        f"Inference-Header-Content-Length: {len(header)}\r\nContent-Length: {size}\r\n\r\n"
    )
    return b"".join([head.encode(), header, *raw])


def _path(request: service_pb2.ModelInferRequest) -> str:
    model = f"/v2/models/{quote(request.model_name, safe='')}"
    version = f"/versions/{quote(request.model_version, safe='')}" if request.model_version else ""
    return f"{model}{version}/infer"


def _described(tensor: Any, size: int) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
        "parameters": {"binary_data_size": size},
    }


def parse_head(head: bytes) -> tuple[int, dict[bytes, bytes]]:
    """Status and headers, their names in lower case; status 0 when this is no HTTP."""
    first, *lines = head.split(b"\r\n")
    status = first[9:12]
    pairs = (line.partition(b":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    return int(status) if status.isdigit() else 0, headers


def decode(answer: Answer) -> service_pb2.ModelInferResponse:
    """The response that gRPC would have given; TritonRefused when there is none."""
    if answer.status != 200:
        raise TritonRefused(answer.status, _error(answer.body))
    at = int(answer.headers.get(JSON_LENGTH, len(answer.body)))
    document = orjson.loads(answer.body[:at])
    response = service_pb2.ModelInferResponse(
        model_name=document["model_name"],
        model_version=document["model_version"],
        id=document.get("id", ""),
    )
    for output in document["outputs"]:
        response.outputs.add(
            name=output["name"], datatype=output["datatype"], shape=output["shape"]
        )
        end = at + output["parameters"]["binary_data_size"]
        response.raw_output_contents.append(answer.body[at:end])
        at = end
    _set_parameters(response, document.get("parameters", {}))
    return response


_FIELDS = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}


def _set_parameters(response: service_pb2.ModelInferResponse, parameters: dict[str, Any]) -> None:
    for name, value in parameters.items():
        setattr(response.parameters[name], _FIELDS[type(value)], value)


def _error(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return ""
