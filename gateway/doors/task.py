"""The task door: one catch-all ``POST /v1/{endpoint}`` for every pipeline that has a face."""

from typing import Any

from starlette.routing import Route

from gateway.addons import load
from gateway.core import Gateway
from gateway.errors import Malformed, NotFound
from gateway.http.endpoint import Endpoint, Reply, json_reply, needs
from gateway.http.exchange import Exchange
from gateway.http.json_body import parse_json
from gateway.models.face import Face, Row

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
        rows, single = _read(face, exchange, await exchange.body())
        answers = await self.gateway.infer_rows(exchange, model, face, rows)
        rendered = [face.render(tensors, index) for tensors, index in answers]
        return json_reply(rendered[0] if single else {"outputs": rendered})


def _read(face: Face, exchange: Exchange, body: bytes) -> tuple[list[Row], bool]:
    """The rows, checked, and whether there was just one, not in a list."""
    content_type = exchange.headers.get(b"content-type", b"")
    if is_form(content_type):
        return [load("multipart")(face, content_type, body)], True
    rows, single = _rows(parse_json(body))
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
