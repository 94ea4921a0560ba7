"""``/v1/chat/completions``, ``/v1/completions`` and ``/v1/responses``: a stock OpenAI client works
unchanged.

Which model serves which route is declared in its endpoint schema (``binding``), not here.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from tritonclient.grpc import service_pb2

from gateway.access.control import BYTES_A_TOKEN
from gateway.api.event_streams import EventStream, stream_responses
from gateway.api.openai.embeddings import resolve_model
from gateway.api.openai.fields import present
from gateway.api.openai.generation import Generation, GenerationRequest, Piece, TokenCounts
from gateway.api.openai.request import read_chat, read_completion, with_text
from gateway.api.openai.responses_request import read_response
from gateway.api.openai.responses_writer import ResponsesWriter
from gateway.api.openai.writers import ChatWriter, CompletionWriter, Writer
from gateway.core import Gateway
from gateway.errors import InvalidRequest
from gateway.http.handler import IN_BODY, Sendable, needs
from gateway.http.json_body import parse_json
from gateway.http.large_json import Bounds
from gateway.http.request_context import RequestContext
from gateway.limits.limiter import Admission
from gateway.models.catalogue import Model
from gateway.models.text_binding import Binding
from gateway.render import json_reply

# A turn is two objects at most, each of its parts one.
_BOUNDS = Bounds(values=2**19, containers=2**16, keys=2**17)
_Body = Mapping[str, Any]
_Read = Callable[[_Body, Binding], GenerationRequest]
_Write = Callable[[str, str, GenerationRequest, _Body], Writer]


class CompletionsApi:
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    @needs("infer", model=IN_BODY)
    async def chat(self, context: RequestContext) -> Sendable:
        return await self._complete(context, "chat", "messages", read_chat, _chat_writer)

    @needs("infer", model=IN_BODY)
    async def completions(self, context: RequestContext) -> Sendable:
        return await self._complete(
            context, "completions", "prompt", read_completion, _completion_writer
        )

    @needs("infer", model=IN_BODY)
    async def responses(self, context: RequestContext) -> Sendable:
        """Served by what serves chat; only how a request and its response are written differs."""
        return await self._complete(context, "chat", "input", read_response, ResponsesWriter)

    async def reply_text(self, context: RequestContext, body: _Body) -> str:
        """What a chat model answers to a request that a route of ours makes of its caller's; the
        caller's limits apply."""
        model, _, declaration = resolve_model(self.gateway, context, "chat", body)
        binding = Binding.compile(declaration, model.inputs, model.outputs)
        request, messages = _read_request(read_chat, body, binding, model)
        completion = _Completion(
            self.gateway, context, model, binding, request, messages, "messages"
        )
        writer = ChatWriter(context.request_id, model.name, request)
        document = await context.while_connected(completion.whole(writer))
        return str(document["choices"][0]["message"]["content"])

    async def _complete(
        self, context: RequestContext, route: str, field: str, read: _Read, write: _Write
    ) -> Sendable:
        body: _Body = await self.gateway.read(context, partial(_fields, field))
        model, _, declaration = resolve_model(self.gateway, context, route, body)
        binding = Binding.compile(declaration, model.inputs, model.outputs)
        if route == "completions":
            body = await with_text(body, binding)
        request, messages = await self.gateway.work(
            context, _read_request, read, body, binding, model
        )
        completion = _Completion(self.gateway, context, model, binding, request, messages, field)
        writer = write(context.request_id, model.name, request, body)
        if not request.stream:
            return json_reply(await context.while_connected(completion.whole(writer)))
        events = completion.events(writer)
        rights = self.gateway.access_control.bounded(context)
        deadline_s = self.gateway.settings.deadline_s
        return EventStream(context, events, deadline_s, rights, writer.failed)


def _chat_writer(request_id: str, model: str, request: GenerationRequest, _: _Body) -> Writer:
    return ChatWriter(request_id, model, request)


def _completion_writer(request_id: str, model: str, request: GenerationRequest, _: _Body) -> Writer:
    return CompletionWriter(request_id, model, request)


def _fields(required: str, data: bytes) -> dict[str, Any]:
    return present(parse_json(data, _BOUNDS), required)


def _read_request(
    read: _Read, body: _Body, binding: Binding, model: Model
) -> tuple[GenerationRequest, Sequence[service_pb2.ModelInferRequest]]:
    request = read(body, binding)
    return request, request.messages(model, binding)


class _Completion:
    """The texts of one request, from admission to the end of the response."""

    def __init__(
        self,
        gateway: Gateway,
        context: RequestContext,
        model: Model,
        binding: Binding,
        request: GenerationRequest,
        messages: Sequence[service_pb2.ModelInferRequest],
        field: str,
    ) -> None:
        self._field = field  # of the body, with the prompt
        self._gateway, self._context, self._model = gateway, context, model
        self._binding, self._request, self._messages = binding, request, messages

    async def whole(self, writer: Writer) -> dict[str, Any]:
        counts = self._counts(await self._context.enter(self._admit()))
        with self._gateway.access_control.bounded(self._context):
            async with aclosing(self._pieces(counts)) as pieces:
                all_pieces = [piece async for piece in pieces]
        return writer.whole(all_pieces, counts)

    async def events(self, writer: Writer) -> AsyncGenerator[bytes, None]:
        """The first event carries the first text, so a failure before it has its own status."""
        async with self._admit() as admission:
            counts = self._counts(admission)
            async with aclosing(self._pieces(counts)) as pieces:
                async for piece in pieces:
                    events = writer.piece(piece)
                    if events:
                        yield events
            yield writer.closing(counts)

    def _pieces(self, counts: TokenCounts) -> AsyncGenerator[Piece, None]:
        return merged(
            [self._choice(choice, message, counts) for choice, message in enumerate(self._messages)]
        )

    async def _choice(
        self, choice: int, message: service_pb2.ModelInferRequest, counts: TokenCounts
    ) -> AsyncGenerator[Piece, None]:
        """The pieces of one text; a stop text ends the work in Triton."""
        generation = Generation(self._binding, self._request, counts, choice)
        responses = stream_responses(
            self._gateway, self._context, self._model, message, self._binding.cancel
        )
        try:
            async with aclosing(responses):
                async for response in responses:
                    yield generation.feed(response)
                    if generation.has_stopped:
                        break
        except InvalidRequest as error:
            raise self._named(error) from error
        yield generation.end()

    def _named(self, error: InvalidRequest) -> InvalidRequest:
        """The engine's refusal, with the field that caused it: the engine knows only tensors."""
        param = error.param
        named = error.problem.split(" ")[0].rstrip(":")
        if error.problem.startswith(("structured_outputs", "json schema")):
            format_field = "text.format" if self._field == "input" else "response_format"
            param = "tools" if self._request.tools else format_field
        elif error.problem.startswith("the prompt"):
            param = self._field
        elif named in self._request.sampling:
            param = named
        return type(error)(error.problem, param=param)

    def _counts(self, admission: Admission) -> TokenCounts:
        counts = TokenCounts(self._request.choices, self._request.n, admission)
        self._context.tokens = counts
        return counts

    def _admit(self) -> Admission:
        max_tokens = self._request.sampling.get("max_tokens", 0) * self._request.choices
        reserved = self._context.body_bytes / BYTES_A_TOKEN + max_tokens
        return self._gateway.access_control.admit(self._context, self._model, reserved)


async def merged(streams: Sequence[AsyncGenerator[Piece, None]]) -> AsyncGenerator[Piece, None]:
    """The pieces of all streams as they arrive, a few at most ahead of who reads them. The first
    stream that fails ends all."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as pieces:
            async for piece in pieces:
                yield piece
        return
    queue: asyncio.Queue[Piece | Exception | None] = asyncio.Queue(len(streams))

    async def pump(stream: AsyncGenerator[Piece, None]) -> None:
        try:
            async with aclosing(stream):
                async for piece in stream:
                    await queue.put(piece)
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    tasks = [asyncio.create_task(pump(stream)) for stream in streams]
    running = len(tasks)
    try:
        while running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
