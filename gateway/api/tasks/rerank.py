"""``/v1/rerank`` and ``/v1/score``: how relevant passages are to a query.

A cross-encoder reads each pair and scores it. An embedding model reads each text by itself, and the
score is the cosine of the vectors. Which of the two a pipeline is, its endpoint schema says: its
binding ``rerank``, or ``embeddings``.

``/v1/rerank`` has Cohere's (v2) and Jina's shape, and is there as ``/v2/rerank`` too, which is what
Cohere's client calls; ``/v1/score`` has vLLM's.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from gateway.api.openai.fields import flag, present
from gateway.core import Gateway
from gateway.errors import SHOWN, InvalidRequest, NotFound, quoted
from gateway.http.handler import IN_BODY, needs
from gateway.http.json_body import parse_json
from gateway.http.large_json import Bounds
from gateway.http.request_context import RequestContext
from gateway.models.catalogue import Model
from gateway.models.compiled_endpoint import CompiledEndpoint, Row
from gateway.models.rows import Tensors
from gateway.render import Reply, json_reply

MAX_DOCUMENTS = 1024
_BOUNDS = Bounds(values=2**13, containers=2**12, keys=2**12)
# Fields of the three APIs. What a field would change and we do not do is refused, not ignored.
_RERANK = frozenset(
    {
        "model",
        "query",
        "documents",
        "top_n",
        "return_documents",
        "truncate",  # ours
        "truncation",  # Jina's name for it
        "user",
    }
)
_SCORE = frozenset({"model", "text_1", "text_2", "truncate", "user"})
_Body = Mapping[str, Any]
_Places = dict[str, str]  # field of a row -> where the request has it


class Pair(NamedTuple):
    """A text and one to compare it with, and where the request has each."""

    first: str
    second: str
    first_at: str
    second_at: str


class Relevance(NamedTuple):
    """A score for each pair, and the tokens that the model read for them."""

    scores: Sequence[float]
    tokens: int


class RerankApi:
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    @needs("infer", model=IN_BODY)
    async def rerank(self, context: RequestContext) -> Reply:
        """The documents, the most relevant first; of two that are equal, the earlier one."""
        body = await self.gateway.read(context, _rerank_body)
        model, endpoint_schema = self._model(context, body)
        query, documents = _text(body.get("query"), "query"), _documents(body.get("documents"))
        top_n = _top_n(body, len(documents))
        pairs = [
            Pair(query, document, "query", f"documents.{index}")
            for index, document in enumerate(documents)
        ]
        # As Cohere and Jina do; our other routes refuse what is too long.
        truncates = flag(body, "truncate", flag(body, "truncation", True))
        relevance = await self._compare(context, model, endpoint_schema, pairs, truncates)
        best = np.argsort(-np.array(relevance.scores), kind="stable")[:top_n].tolist()
        returns_documents = flag(body, "return_documents")
        results = [
            {
                "index": index,
                "relevance_score": relevance.scores[index],
                **({"document": {"text": documents[index]}} if returns_documents else {}),
            }
            for index in best
        ]
        tokens = relevance.tokens
        return json_reply(
            {
                "id": f"rerank-{context.request_id}",
                "model": model.name,
                "results": results,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
                "meta": {
                    "api_version": {"version": "2"},
                    "billed_units": {"search_units": 1},
                    "tokens": {"input_tokens": tokens},
                },
            }
        )

    @needs("infer", model=IN_BODY)
    async def score(self, context: RequestContext) -> Reply:
        """A score for each pair: one text with each of several, or several with as many."""
        body = await self.gateway.read(context, _score_body)
        model, endpoint_schema = self._model(context, body)
        pairs = _pairs(body)
        truncates = flag(body, "truncate")
        relevance = await self._compare(context, model, endpoint_schema, pairs, truncates)
        data = [
            {"index": index, "object": "score", "score": score}
            for index, score in enumerate(relevance.scores)
        ]
        return json_reply(
            {
                "id": f"score-{context.request_id}",
                "object": "list",
                "created": int(time.time()),
                "model": model.name,
                "data": data,
                "usage": {"prompt_tokens": relevance.tokens, "total_tokens": relevance.tokens},
            }
        )

    def _model(self, context: RequestContext, body: _Body) -> tuple[Model, CompiledEndpoint]:
        name = body.get("model")
        if not isinstance(name, str) or not name:
            raise InvalidRequest("'model' must name a model: see GET /v1/models", param="model")
        context.require("infer", name)
        model, endpoint_schema = self.gateway.catalogue.endpoint(
            self.gateway.destination(context, name)
        )
        if not endpoint_schema.compares_texts:
            raise NotFound(
                f"model {quoted(name)} does not compare texts: choose a cross-encoder or an "
                "embedding model",
                param="model",
            )
        return model, endpoint_schema

    async def _compare(
        self,
        context: RequestContext,
        model: Model,
        endpoint_schema: CompiledEndpoint,
        pairs: Sequence[Pair],
        truncates: bool,
    ) -> Relevance:
        """The relevance of each pair. A text, or a pair, that stands in the request several times
        is computed once. Raises InvalidRequest, which names the field."""
        routes = endpoint_schema.openai
        is_cross_encoder = "rerank" in routes
        binding = cast("Mapping[str, str]", routes["rerank" if is_cross_encoder else "embeddings"])
        compose = _pair_rows if is_cross_encoder else _text_rows
        rows, places, used = compose(pairs, binding)
        if truncates and "truncate" in endpoint_schema.schema.fields:
            rows = [{**row, "truncate": True} for row in rows]
        await self.gateway.work(context, _check, endpoint_schema, rows, places)
        try:
            outputs = await self.gateway.infer_rows(context, model, endpoint_schema, rows)
        except InvalidRequest as error:
            if error.row is None:
                raise
            raise error.at(next(iter(places[error.row].values()))) from error
        if is_cross_encoder:
            scores = [_number(outputs[row], binding["score"]) for row, _ in used]
        else:
            vectors = _unit_vectors(outputs, binding["vector"])
            first, second = (vectors[list(rows_used)] for rows_used in zip(*used, strict=True))
            # In FP64, and rounded as FP32 is: two texts that are the same have exactly 1.
            scores = np.einsum("ij,ij->i", first, second).round(6).tolist()
        tokens = sum(int(_number(output, binding["tokens"])) for output in outputs)
        return Relevance(scores, tokens)


def _pair_rows(
    pairs: Sequence[Pair], binding: Mapping[str, str]
) -> tuple[list[Row], list[_Places], list[tuple[int, int]]]:
    """A row for each distinct pair, where the request has its texts, and each pair's row, twice."""
    rows: dict[tuple[str, str], int] = {}
    places: list[_Places] = []
    for pair in pairs:
        if rows.setdefault(pair[:2], len(rows)) == len(places):
            places.append({binding["text"]: pair.second_at, binding["query"]: pair.first_at})
    texts: list[Row] = [
        {binding["query"]: first, binding["text"]: second} for first, second in rows
    ]
    return texts, places, [(rows[pair[:2]], rows[pair[:2]]) for pair in pairs]


def _text_rows(
    pairs: Sequence[Pair], binding: Mapping[str, str]
) -> tuple[list[Row], list[_Places], list[tuple[int, int]]]:
    """A row for each distinct text, where the request has it, and the two rows of each pair."""
    rows: dict[str, int] = {}
    places: list[_Places] = []
    for pair in pairs:
        for text, place in ((pair.first, pair.first_at), (pair.second, pair.second_at)):
            if rows.setdefault(text, len(rows)) == len(places):
                places.append({binding["text"]: place})
    used = [(rows[pair.first], rows[pair.second]) for pair in pairs]
    return [{binding["text"]: text} for text in rows], places, used


def _check(
    endpoint_schema: CompiledEndpoint, rows: Sequence[Row], places: Sequence[_Places]
) -> None:
    """Raises InvalidRequest, which names the field of the request, not that of the row."""
    for row, fields in zip(rows, places, strict=True):
        try:
            endpoint_schema.check(row, "")
        except InvalidRequest as error:
            place = fields.get(error.param, next(iter(fields.values())))
            reason = error.message.partition(": ")[2]
            raise InvalidRequest(f"{place}: {reason}", param=place) from None


def _unit_vectors(outputs: Sequence[tuple[Tensors, int]], tensor: str) -> np.ndarray:
    """FP64 [rows, width], each of length 1; zeros where the model's vector is zero."""
    vectors = np.stack([tensors[tensor][index] for tensors, index in outputs]).astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1))


def _number(output: tuple[Tensors, int], tensor: str) -> float:
    tensors, index = output
    return float(tensors[tensor][index].reshape(-1)[0])


def _rerank_body(data: bytes) -> dict[str, Any]:
    return _known(data, "documents", _RERANK, "'model', 'query' and 'documents'")


def _score_body(data: bytes) -> dict[str, Any]:
    return _known(data, "text_2", _SCORE, "'model', 'text_1' and 'text_2'")


def _known(data: bytes, required: str, known: frozenset[str], names: str) -> dict[str, Any]:
    """The body's fields that are not null. Raises InvalidRequest for one that we do not know."""
    document = parse_json(data, _BOUNDS)
    if not isinstance(document, dict):
        raise InvalidRequest(f"the body must be a JSON object with {names}")
    body = present(document, required)
    unknown = next((name for name in body if name not in known), None)
    if unknown is not None:
        raise InvalidRequest(f"unknown field {quoted(unknown)}", param=unknown[:SHOWN])
    return body


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{where!r} must be a text", param=where)
    return value


def _documents(value: object) -> list[str]:
    """The documents' texts: strings, or objects with ``text``."""
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_DOCUMENTS:
        raise InvalidRequest(
            f"'documents' must be a list of 1 to {MAX_DOCUMENTS} texts", param="documents"
        )
    documents = []
    for index, document in enumerate(value):
        text = document.get("text") if isinstance(document, dict) else document
        if not isinstance(text, str):
            raise InvalidRequest(
                f'documents.{index}: send a text, or {{"text": "..."}}', param=f"documents.{index}"
            )
        documents.append(text)
    return documents


def _top_n(body: _Body, count: int) -> int:
    """How many results to return: at most as many as there are documents."""
    top_n = body.get("top_n", count)
    if type(top_n) is not int or top_n < 1:
        raise InvalidRequest("'top_n' must be an integer above 0", param="top_n")
    return min(top_n, count)


def _pairs(body: _Body) -> list[Pair]:
    """One text with each of several, several with one, or as many with as many."""
    first, second = _texts(body, "text_1"), _texts(body, "text_2")
    count = max(len(first), len(second))
    if not {len(first), len(second)} <= {1, count}:
        raise InvalidRequest(
            f"'text_1' has {len(first)} texts and 'text_2' {len(second)}: send one and any number, "
            "or as many as there are in the other",
            param="text_2",
        )
    if len(first) < count:
        first = first * count
    if len(second) < count:
        second = second * count
    return [Pair(a, b, a_at, b_at) for (a, a_at), (b, b_at) in zip(first, second, strict=True)]


def _texts(body: _Body, field: str) -> list[tuple[str, str]]:
    """The field's texts, each with its place in the body."""
    value = body.get(field)
    if not isinstance(value, list):
        return [(_text(value, field), field)]
    if not 1 <= len(value) <= MAX_DOCUMENTS:
        raise InvalidRequest(f"{field!r} must be a text or 1 to {MAX_DOCUMENTS} texts", param=field)
    places = [f"{field}.{index}" for index in range(len(value))]
    return [(_text(text, place), place) for text, place in zip(value, places, strict=True)]
