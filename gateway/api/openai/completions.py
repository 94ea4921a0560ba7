"""``/v1/chat/completions`` and ``/v1/completions``: a stock OpenAI client works unchanged.

Which model serves which route is said by its endpoint schema (``binding``), not here.
"""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

from tritonclient.grpc import service_pb2

from gateway.access_control import BYTES_A_TOKEN
from gateway.api.event_streams import DONE, EventStream, answers
from gateway.api.openai.embeddings import serving
from gateway.api.openai.generation import Ask, Generation
from gateway.api.openai.request import read_chat, read_completion, with_text
from gateway.api.openai.responses import ChatForm, CompletionForm, Form
from gateway.api.openai.sampling import present
from gateway.core import Gateway
from gateway.http.handler import IN_BODY, Sendable, json_reply, needs
from gateway.http.json_body import parse_json
from gateway.http.large_json import Bounds
from gateway.http.request_context import RequestContext
from gateway.limits.limiter import Admission
from gateway.models.catalogue import Model
from gateway.models.text_binding import Binding

# A turn is two objects at most, each of its parts one.
_BOUNDS = Bounds(values=2**19, containers=2**16, keys=2**17)
_Read = Callable[[Mapping[str, Any], Binding], Ask]


class CompletionsApi:
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    @needs("infer", model=IN_BODY)
    async def chat(self, context: RequestContext) -> Sendable:
        return await self._answer(context, "chat", "messages", read_chat)

    @needs("infer", model=IN_BODY)
    async def completions(self, context: RequestContext) -> Sendable:
        return await self._answer(context, "completions", "prompt", read_completion)

    async def _answer(
        self, context: RequestContext, route: str, field: str, read: _Read
    ) -> Sendable:
        body: Mapping[str, Any] = await self.gateway.read(context, partial(_fields, field))
        model, _, raw = serving(self.gateway, context, route, body)
        binding = Binding.compile(raw, model.inputs, model.outputs)
        if route == "completions":
            body = await with_text(body, binding)
        ask, message = await self.gateway.work(context, _asked, read, body, binding, model)
        work = _Work(self.gateway, context, model, binding, ask, message)
        kind = ChatForm if route == "chat" else CompletionForm
        form = kind(context.request_id, model.name, ask.include_usage)
        if not ask.stream:
            return json_reply(await context.while_connected(work.whole(form)))
        rights = self.gateway.access_control.bounded(context)
        return EventStream(context, work.events(form), self.gateway.settings.deadline_s, rights)


def _fields(wanted: str, data: bytes) -> dict[str, Any]:
    return present(parse_json(data, _BOUNDS), wanted)


def _asked(
    read: _Read, body: Mapping[str, Any], binding: Binding, model: Model
) -> tuple[Ask, service_pb2.ModelInferRequest]:
    ask = read(body, binding)
    return ask, ask.message(model, binding)


class _Work:
    """One text, from admission to the end of the answer."""

    def __init__(
        self,
        gateway: Gateway,
        context: RequestContext,
        model: Model,
        binding: Binding,
        ask: Ask,
        message: service_pb2.ModelInferRequest,
    ) -> None:
        self._gateway, self._context, self._model = gateway, context, model
        self._binding, self._ask, self._message = binding, ask, message

    async def whole(self, form: Form) -> dict[str, Any]:
        admission = await self._context.enter(self._admitted())
        with self._gateway.access_control.bounded(self._context):
            generation = Generation(self._binding, self._ask, admission)
            text = "".join([each async for each in self._texts(generation)])
        return form.whole(text, generation)

    async def events(self, form: Form) -> AsyncGenerator[bytes, None]:
        """The first comes with the first text: what fails before has a status of its own."""
        async with self._admitted() as admission:
            generation = Generation(self._binding, self._ask, admission)
            head = form.opening()
            async with aclosing(self._texts(generation)) as texts:
                async for text in texts:
                    yield head + form.piece(text)
                    head = b""
            yield head + form.closing(generation) + DONE

    async def _texts(self, generation: Generation) -> AsyncGenerator[str, None]:
        """Pieces that are not empty; a stop text ends the work in Triton."""
        found = answers(self._gateway, self._context, self._model, self._message)
        prefix = self._ask.prefix
        async with aclosing(found):
            async for answer in found:
                text, prefix = prefix + generation.feed(answer), ""
                if text:
                    yield text
                if generation.has_stopped:
                    return
        rest = prefix + generation.rest()
        if rest:
            yield rest

    def _admitted(self) -> Admission:
        most = self._ask.sampling.get("max_tokens", 0)
        reserved = self._context.body_bytes / BYTES_A_TOKEN + most
        return self._gateway.access_control.admit(self._context, self._model, reserved)
