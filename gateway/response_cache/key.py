"""What makes two requests equal: a digest over everything that decides the response."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import orjson
from tritonclient.grpc import service_pb2

DIGEST_BYTES = 32
# An input's elements: raw bytes, or typed ones as protobuf writes them. They are told apart, since
# Triton answers either in kind.
Elements = tuple[bool, bytes | memoryview]


class CacheScope(NamedTuple):
    """Whose responses, and of what. ``model`` is what serves: the pipeline, or a canary of it;
    ``revision`` changes with its config, those of its steps and their versions."""

    tenant: str
    model: str
    version: str
    revision: str


def key_of(
    scope: CacheScope, header: service_pb2.ModelInferRequest, elements: Sequence[Elements]
) -> bytes:
    """32 bytes that no two different requests share: a BLAKE2b digest over the scope, the inputs
    (names, dtypes, shapes, ``elements``), the requested outputs and all parameters. The request's
    id is left out, and so is the order of the inputs."""
    inputs = sorted(zip(header.inputs, elements, strict=True), key=lambda pair: str(pair[0].name))
    document = [
        list(scope),
        [
            [tensor.name, tensor.datatype, list(tensor.shape), is_raw, len(data)]
            for tensor, (is_raw, data) in inputs
        ],
        [[output.name, _parameters(output.parameters)] for output in header.outputs],
        _parameters(header.parameters),
    ]
    head = orjson.dumps(document)
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES, person=b"tg-response")
    # Each part says how long it is before it comes: no request can be read as another one.
    digest.update(len(head).to_bytes(8, "big"))
    digest.update(head)
    for _, (_, data) in inputs:
        digest.update(data)
    return digest.digest()


def elements_of(message: service_pb2.ModelInferRequest) -> list[Elements]:
    """Those of a whole ModelInferRequest, one for each input."""
    raws = message.raw_input_contents
    if raws:
        return [(True, raw) for raw in raws]
    return [(False, _serialized(tensor.contents)) for tensor in message.inputs]


def combined(keys: Iterable[bytes], layout: object) -> bytes:
    """The key of a request whose rows go to the model in several batches, with the ``layout`` of
    its rows."""
    digest = hashlib.blake2b(repr(layout).encode(), digest_size=DIGEST_BYTES, person=b"tg-rows")
    for key in keys:
        digest.update(key)
    return digest.digest()


def _serialized(contents: service_pb2.InferTensorContents) -> bytes:
    data: bytes = contents.SerializeToString(deterministic=True)
    return data


def _parameters(parameters: Any) -> list[tuple[str, str, str]]:
    return [
        (key, choice, repr(getattr(parameters[key], choice)))
        for key in sorted(parameters)
        if (choice := parameters[key].WhichOneof("parameter_choice"))
    ]
