"""The task API: a catch-all ``POST /v1/{endpoint}`` for pipelines that have an endpoint schema."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.routing import Route

from gateway.core import Gateway
from gateway.errors import InvalidRequest, NotFound
from gateway.http.handler import Endpoint, Sendable, needs
from gateway.http.json_body import LARGE_BYTES, parse_json, to_json
from gateway.http.request_context import RequestContext
from gateway.models.catalogue import Model
from gateway.models.compiled_endpoint import GROUNDED_REPLY, CompiledEndpoint, Row
from gateway.models.rows import Tensors, size_of
from gateway.render import Reply

if TYPE_CHECKING:
    from gateway.api.tasks.grounded_reply import GroundedReplies

MAX_ROWS = 1024


class TaskApi:
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._grounded_replies: GroundedReplies | None = None  # imported at the first call

    def routes(self) -> list[Route]:
        return [Route("/v1/{endpoint}", Endpoint(self.call), methods=["POST"])]

    @needs("infer", model="endpoint")
    async def call(self, context: RequestContext) -> Sendable:
        """``{field: ...}`` outputs with one object; ``{"inputs": [{...}, ...]}`` with
        ``{"outputs": [...]}``, in the same order. A multipart form is one object too."""
        model, endpoint_schema = self.gateway.catalogue.endpoint(
            self.gateway.destination(context, context.param("endpoint"))
        )
        if model.decoupled:
            raise NotFound(f"{model.name!r} streams: see /v1/chat/completions and generate_stream")
        if GROUNDED_REPLY in endpoint_schema.openai:
            return await self._grounded(context, model, endpoint_schema)
        return await self._infer(context, model, endpoint_schema, await context.body())

    async def _infer(
        self, context: RequestContext, model: Model, endpoint_schema: CompiledEndpoint, body: bytes
    ) -> Reply:
        content_type = context.headers.get(b"content-type", b"")
        rows, is_single = await self.gateway.work(
            context, _read, endpoint_schema, content_type, body
        )
        del body
        try:
            outputs = await self.gateway.infer_rows(context, model, endpoint_schema, rows)
        except InvalidRequest as error:
            raise _with_path(error, is_single) from error
        return await self._reply(context, endpoint_schema, outputs, is_single)

    async def _grounded(
        self, context: RequestContext, model: Model, endpoint_schema: CompiledEndpoint
    ) -> Sendable:
        """One message may be answered by a language model, and streamed; several are only looked
        up."""
        body = await context.body()
        document = await self.gateway.work(context, parse_json, body)
        if not isinstance(document, dict) or "inputs" in document:
            return await self._infer(context, model, endpoint_schema, body)
        if self._grounded_replies is None:
            from gateway.api.tasks.grounded_reply import GroundedReplies

            self._grounded_replies = GroundedReplies(self.gateway)
        row = endpoint_schema.without_nulls(document)
        return await self._grounded_replies.reply(context, model, endpoint_schema, row)

    async def _reply(
        self,
        context: RequestContext,
        endpoint_schema: CompiledEndpoint,
        outputs: Sequence[tuple[Tensors, int]],
        is_single: bool,
    ) -> Reply:
        if size_of(outputs) > LARGE_BYTES:
            return await self.gateway.off_loop.run(
                context, _render, endpoint_schema, outputs, is_single
            )
        return _render(endpoint_schema, outputs, is_single)


def _render(
    endpoint_schema: CompiledEndpoint, outputs: Sequence[tuple[Tensors, int]], is_single: bool
) -> Reply:
    """Serialise row by row, so that no single call takes long."""
    rows = [to_json(endpoint_schema.render(tensors, index)) for tensors, index in outputs]
    return Reply(200, rows[0] if is_single else b"".join((b'{"outputs":[', b",".join(rows), b"]}")))


def _with_path(error: InvalidRequest, is_single: bool) -> InvalidRequest:
    """The error with the row's path in the body; a row sent alone needs none."""
    if error.row is None:
        return error
    return error.at("" if is_single else f"inputs.{error.row}")


def _read(
    endpoint_schema: CompiledEndpoint, content_type: bytes, body: bytes
) -> tuple[list[Row], bool]:
    """The rows, checked, and whether the body is a single row."""
    if is_form(content_type):
        from gateway.api.tasks.multipart import read_form

        return [read_form(endpoint_schema, content_type, body)], True
    raw_rows, is_single = _rows(parse_json(body))
    rows = [endpoint_schema.without_nulls(row) for row in raw_rows]
    for index, row in enumerate(rows):
        endpoint_schema.check(row, "" if is_single else f"inputs.{index}")
    return rows, is_single


def is_form(content_type: bytes) -> bool:
    return content_type.split(b";", 1)[0].strip().lower() == b"multipart/form-data"


def _rows(body: object) -> tuple[list[Row], bool]:
    """The rows, and whether the body is a single row."""
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object")
    if "inputs" not in body:
        return [body], True
    rows = body["inputs"]
    if len(body) > 1:
        raise InvalidRequest("send 'inputs' alone: put the fields into its objects")
    if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_ROWS:
        raise InvalidRequest(f"'inputs' must be a list of 1 to {MAX_ROWS} objects", param="inputs")
    return rows, False
