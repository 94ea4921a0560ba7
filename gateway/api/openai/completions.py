"""``/v1/chat/completions`` and ``/v1/completions``: a stock OpenAI client works unchanged.

Which model serves which route is declared in its endpoint schema (``binding``), not here.
"""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

from tritonclient.grpc import service_pb2

from gateway.access.control import BYTES_A_TOKEN
from gateway.api.event_streams import DONE, EventStream, stream_responses
from gateway.api.openai.embeddings import resolve_model
from gateway.api.openai.generation import Generation, GenerationRequest
from gateway.api.openai.request import read_chat, read_completion, with_text
from gateway.api.openai.responses import ChatWriter, CompletionWriter, ResponseWriter
from gateway.api.openai.sampling import present
from gateway.core import Gateway
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
_Read = Callable[[Mapping[str, Any], Binding], GenerationRequest]


class CompletionsApi:
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    @needs("infer", model=IN_BODY)
    async def chat(self, context: RequestContext) -> Sendable:
        return await self._complete(context, "chat", "messages", read_chat)

    @needs("infer", model=IN_BODY)
    async def completions(self, context: RequestContext) -> Sendable:
        return await self._complete(context, "completions", "prompt", read_completion)

    async def _complete(
        self, context: RequestContext, route: str, field: str, read: _Read
    ) -> Sendable:
        body: Mapping[str, Any] = await self.gateway.read(context, partial(_fields, field))
        model, _, declaration = resolve_model(self.gateway, context, route, body)
        binding = Binding.compile(declaration, model.inputs, model.outputs)
        if route == "completions":
            body = await with_text(body, binding)
        request, message = await self.gateway.work(
            context, _read_request, read, body, binding, model
        )
        completion = _Completion(self.gateway, context, model, binding, request, message)
        writer_class = ChatWriter if route == "chat" else CompletionWriter
        writer = writer_class(context.request_id, model.name, request.include_usage)
        if not request.stream:
            return json_reply(await context.while_connected(completion.whole(writer)))
        events = completion.events(writer)
        rights = self.gateway.access_control.bounded(context)
        return EventStream(context, events, self.gateway.settings.deadline_s, rights)


def _fields(required: str, data: bytes) -> dict[str, Any]:
    return present(parse_json(data, _BOUNDS), required)


def _read_request(
    read: _Read, body: Mapping[str, Any], binding: Binding, model: Model
) -> tuple[GenerationRequest, service_pb2.ModelInferRequest]:
    request = read(body, binding)
    return request, request.message(model, binding)


class _Completion:
    """One text, from admission to the end of the response."""

    def __init__(
        self,
        gateway: Gateway,
        context: RequestContext,
        model: Model,
        binding: Binding,
        request: GenerationRequest,
        message: service_pb2.ModelInferRequest,
    ) -> None:
        self._gateway, self._context, self._model = gateway, context, model
        self._binding, self._request, self._message = binding, request, message

    async def whole(self, writer: ResponseWriter) -> dict[str, Any]:
        admission = await self._context.enter(self._admit())
        with self._gateway.access_control.bounded(self._context):
            generation = Generation(self._binding, self._request, admission)
            text = "".join([piece async for piece in self._texts(generation)])
        return writer.whole(text, generation)

    async def events(self, writer: ResponseWriter) -> AsyncGenerator[bytes, None]:
        """The first event carries the first text, so a failure before it has its own status."""
        async with self._admit() as admission:
            generation = Generation(self._binding, self._request, admission)
            opening = writer.opening()
            async with aclosing(self._texts(generation)) as texts:
                async for text in texts:
                    yield opening + writer.piece(text)
                    opening = b""
            yield opening + writer.closing(generation) + DONE

    async def _texts(self, generation: Generation) -> AsyncGenerator[str, None]:
        """Pieces of text, none empty; a stop text ends the work in Triton."""
        responses = stream_responses(self._gateway, self._context, self._model, self._message)
        prefix = self._request.prefix
        async with aclosing(responses):
            async for response in responses:
                text, prefix = prefix + generation.feed(response), ""
                if text:
                    yield text
                if generation.has_stopped:
                    return
        rest = prefix + generation.rest()
        if rest:
            yield rest

    def _admit(self) -> Admission:
        max_tokens = self._request.sampling.get("max_tokens", 0)
        reserved = self._context.body_bytes / BYTES_A_TOKEN + max_tokens
        return self._gateway.access_control.admit(self._context, self._model, reserved)
