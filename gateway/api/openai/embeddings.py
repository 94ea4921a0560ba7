"""``/v1/embeddings``: a stock ``openai`` client works unchanged.

Which pipeline serves which route is declared in its endpoint schema (``openai``), not here.
"""

import base64
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from starlette.routing import Route

from gateway.api.openai.token_arrays import are_tokens
from gateway.api.openai.token_inputs import MAX_INPUTS, as_text, embedding_rows
from gateway.core import Gateway
from gateway.errors import SHOWN, InvalidRequest, NotFound, quoted
from gateway.http.handler import IN_BODY, Endpoint, needs
from gateway.http.json_body import LARGE_BYTES, parse_json, to_json
from gateway.http.large_json import Bounds
from gateway.http.request_context import RequestContext
from gateway.models.catalogue import Model
from gateway.models.compiled_endpoint import CompiledEndpoint, Row
from gateway.models.rows import Tensors, size_of
from gateway.render import Reply

# Fields of OpenAI's API; others are refused, so that a typo is noticed.
_EMBEDDING_FIELDS = frozenset({"model", "input", "encoding_format", "dimensions", "user"})
# Texts, or as many token ids as OpenAI takes.
_BOUNDS = Bounds(values=2**19, containers=2 * MAX_INPUTS, keys=64)


class EmbeddingsApi:
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    def routes(self) -> list[Route]:
        return [
            Route("/v1/embeddings", Endpoint(self.embeddings), methods=["POST"]),
        ]

    @needs("infer", model=IN_BODY)
    async def embeddings(self, context: RequestContext) -> Reply:
        """Vectors for one text or a list of texts, as floats or base64."""
        body = await self.gateway.read(context, _embedding_body)
        model, endpoint_schema, binding = resolve_model(self.gateway, context, "embeddings", body)
        value = await as_text(body.get("input"), binding, "input")
        is_list = isinstance(value, list) and not are_tokens(value)
        rows = embedding_rows(value, binding)
        await self.gateway.work(context, _check_rows, endpoint_schema, rows, is_list)
        try:
            outputs = await self.gateway.infer_rows(context, model, endpoint_schema, rows)
        except InvalidRequest as error:
            if error.row is None:
                raise
            raise error.at(f"input.{error.row}" if is_list else "input") from error
        render = partial(_render, body, model.name, binding, outputs)
        if size_of(outputs) > LARGE_BYTES:
            return await self.gateway.off_loop.run(context, render)
        return render()


def _check_rows(endpoint_schema: CompiledEndpoint, rows: Sequence[Row], is_list: bool) -> None:
    for index, row in enumerate(rows):
        endpoint_schema.check(row, f"input.{index}" if is_list else "input")


def _render(
    body: Mapping[str, Any],
    model: str,
    binding: Mapping[str, Any],
    outputs: Sequence[tuple[Tensors, int]],
) -> Reply:
    """Serialise vector by vector, so that no single call takes long."""
    vectors = [tensors[binding["vector"]][index] for tensors, index in outputs]
    _check_dimensions(body, vectors[0])
    as_base64 = body.get("encoding_format") == "base64"
    data = [to_json(_embedding(index, v, as_base64)) for index, v in enumerate(vectors)]
    rest = to_json({"model": model, "usage": _usage(outputs, binding["tokens"])})
    return Reply(200, b"".join((b'{"object":"list","data":[', b",".join(data), b"],", rest[1:])))


def resolve_model(
    gateway: Gateway, context: RequestContext, route: str, body: Mapping[str, Any]
) -> tuple[Model, CompiledEndpoint, Mapping[str, Any]]:
    """The pipeline that the body's ``model`` names, its endpoint schema, and that schema's binding
    for this route. Raises InvalidRequest, Forbidden and NotFound."""
    name = body.get("model")
    if not isinstance(name, str) or not name:
        raise InvalidRequest("'model' must name a model: see GET /v1/models", param="model")
    context.require("infer", name)
    if route != "tokenize":  # a fallback's token ids are others
        name = gateway.destination(context, name)
    model, endpoint_schema = gateway.catalogue.endpoint(name)
    if route not in endpoint_schema.openai:
        raise NotFound(f"model {quoted(name)} does not serve {route}: choose another model")
    return model, endpoint_schema, endpoint_schema.openai[route]


def _embedding_body(data: bytes) -> dict[str, Any]:
    """The body's fields that are not null; raises InvalidRequest for unknown fields."""
    document = parse_json(data, _BOUNDS)
    if not isinstance(document, dict):
        raise InvalidRequest("the body must be a JSON object with 'model' and 'input'")
    body = {name: value for name, value in document.items() if value is not None}
    unknown = next((name for name in document if name not in _EMBEDDING_FIELDS), None)
    if unknown is not None:
        raise InvalidRequest(f"unknown field {quoted(unknown)}", param=unknown[:SHOWN])
    if body.get("encoding_format", "float") not in ("float", "base64"):
        raise InvalidRequest(
            "'encoding_format' must be 'float' or 'base64'", param="encoding_format"
        )
    return body


def _check_dimensions(body: Mapping[str, Any], vector: np.ndarray) -> None:
    dimensions = body.get("dimensions")
    if dimensions is not None and (type(dimensions) is not int or dimensions != vector.size):
        raise InvalidRequest(
            f"'dimensions' must be {vector.size}: this model's vectors cannot be shortened",
            param="dimensions",
        )


def _embedding(index: int, vector: np.ndarray, as_base64: bool) -> dict[str, Any]:
    embedding: Any = np.ascontiguousarray(vector)
    if as_base64:
        embedding = base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return {"object": "embedding", "index": index, "embedding": embedding}


def _usage(outputs: Sequence[tuple[Tensors, int]], tensor: str) -> dict[str, int]:
    tokens = sum(int(tensors[tensor][index].reshape(-1)[0]) for tensors, index in outputs)
    return {"prompt_tokens": tokens, "total_tokens": tokens}
