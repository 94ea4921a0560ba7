"""The task door: one catch-all ``POST /v1/{endpoint}`` for every pipeline that has a face."""

from collections.abc import Sequence
from typing import Any

from starlette.routing import Route

from gateway.addons import load
from gateway.core import Gateway
from gateway.errors import Malformed, NotFound
from gateway.http.endpoint import Endpoint, Reply, needs
from gateway.http.exchange import Exchange
from gateway.http.json_body import LARGE_BYTES, parse_json, to_json
from gateway.models.face import Face, Row
from gateway.models.rows import Tensors, size_of

MAX_ROWS = 1024


class TaskDoor:
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    def routes(self) -> list[Route]:
        return [Route("/v1/{endpoint}", Endpoint(self.call), methods=["POST"])]

    @needs("infer", model="endpoint")
    async def call(self, exchange: Exchange) -> Reply:
        """``{field: ...}`` answers with one object; ``{"inputs": [{...}, ...]}`` with
        ``{"outputs": [...]}``, in the same order. A multipart form is one object too."""
        model, face = self.gateway.catalogue.endpoint(exchange.param("endpoint"))
        if model.decoupled:
            raise NotFound(f"{model.name!r} streams: see /v1/chat/completions and generate_stream")
        body = await exchange.body()
        content_type = exchange.headers.get(b"content-type", b"")
        rows, single = await self.gateway.work(exchange, _read, face, content_type, body)
        del body
        try:
            answers = await self.gateway.infer_rows(exchange, model, face, rows)
        except Malformed as error:
            raise _named(error, single) from error
        return await self._rendered(exchange, face, answers, single)

    async def _rendered(
        self, exchange: Exchange, face: Face, answers: Sequence[tuple[Tensors, int]], single: bool
    ) -> Reply:
        if size_of(answers) > LARGE_BYTES:
            return await self.gateway.off_loop.run(exchange, _render, face, answers, single)
        return _render(face, answers, single)


def _render(face: Face, answers: Sequence[tuple[Tensors, int]], single: bool) -> Reply:
    """Row by row: none of the calls is long."""
    rows = [to_json(face.render(tensors, index)) for tensors, index in answers]
    return Reply(200, rows[0] if single else b"".join((b'{"outputs":[', b",".join(rows), b"]}")))


def _named(error: Malformed, single: bool) -> Malformed:
    """With the row's place in the body; one that was sent alone needs none."""
    if error.row is None:
        return error
    return error.at("" if single else f"inputs.{error.row}")


def _read(face: Face, content_type: bytes, body: bytes) -> tuple[list[Row], bool]:
    """The rows, checked, and whether there was just one, not in a list."""
    if is_form(content_type):
        return [load("multipart")(face, content_type, body)], True
    given, single = _rows(parse_json(body))
    rows = [face.without_nulls(row) for row in given]
    for place, row in enumerate(rows):
        face.check(row, "" if single else f"inputs.{place}")
    return rows, single


def is_form(content_type: bytes) -> bool:
    return content_type.split(b";", 1)[0].strip().lower() == b"multipart/form-data"


def _rows(body: Any) -> tuple[list[Row], bool]:
    """The rows and whether there was just one, not in a list."""
    if not isinstance(body, dict):
        raise Malformed("the body must be a JSON object")
    if "inputs" not in body:
        return [body], True
    rows = body["inputs"]
    if len(body) > 1:
        raise Malformed("send 'inputs' alone: the fields go into its objects")
    if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_ROWS:
        raise Malformed(f"'inputs' must be a list of 1 to {MAX_ROWS} objects", param="inputs")
    return rows, False
