"""``/v1/chat/completions`` and ``/v1/completions``: a stock OpenAI client works unchanged.

Which model serves which route is said by its face (``binding``), not here.
"""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from typing import Any

from tritonclient.grpc import service_pb2

from gateway.addons.openai_text.binding import Binding
from gateway.addons.openai_text.form import ChatForm, CompletionForm, Form
from gateway.addons.openai_text.generation import Ask, Generation
from gateway.addons.openai_text.request import read_chat, read_completion, with_text
from gateway.addons.openai_text.sampling import present
from gateway.addons.streams import DONE, EventStream, answers
from gateway.core import Gateway
from gateway.doors.embeddings import serving
from gateway.guard import BYTES_A_TOKEN
from gateway.http.endpoint import IN_BODY, Sendable, json_reply, needs
from gateway.http.exchange import Exchange
from gateway.http.json_body import parse_json
from gateway.http.large_json import Bounds
from gateway.limits.limiter import Admission
from gateway.models.catalogue import Model

# A turn is two objects at most, each of its parts one.
_BOUNDS = Bounds(values=2**19, containers=2**16, keys=2**17)
_Read = Callable[[Mapping[str, Any], Binding], Ask]


class TextDoor:
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    @needs("infer", model=IN_BODY)
    async def chat(self, exchange: Exchange) -> Sendable:
        return await self._answer(exchange, "chat", "messages", read_chat)

    @needs("infer", model=IN_BODY)
    async def completions(self, exchange: Exchange) -> Sendable:
        return await self._answer(exchange, "completions", "prompt", read_completion)

    async def _answer(self, exchange: Exchange, route: str, field: str, read: _Read) -> Sendable:
        body: Mapping[str, Any] = await self.gateway.read(exchange, partial(_fields, field))
        model, _, raw = serving(self.gateway, exchange, route, body)
        binding = Binding.compile(raw, model.inputs, model.outputs)
        if route == "completions":
            body = await with_text(body, binding)
        ask, message = await self.gateway.work(exchange, _asked, read, body, binding, model)
        work = _Work(self.gateway, exchange, model, binding, ask, message)
        kind = ChatForm if route == "chat" else CompletionForm
        form = kind(exchange.request_id, model.name, ask.include_usage)
        if not ask.stream:
            return json_reply(await exchange.while_connected(work.whole(form)))
        return EventStream(exchange, work.events(form), self.gateway.settings.deadline_s)


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
        exchange: Exchange,
        model: Model,
        binding: Binding,
        ask: Ask,
        message: service_pb2.ModelInferRequest,
    ) -> None:
        self._gateway, self._exchange, self._model = gateway, exchange, model
        self._binding, self._ask, self._message = binding, ask, message

    async def whole(self, form: Form) -> dict[str, Any]:
        async with self._admitted() as admission:
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
        found = answers(self._gateway, self._exchange, self._model, self._message)
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

    def _admitted(self) -> AbstractAsyncContextManager[Admission | None]:
        most = self._ask.sampling.get("max_tokens", 0)
        reserved = self._exchange.body_bytes / BYTES_A_TOKEN + most
        return self._gateway.guard.admit(self._exchange, self._model, reserved)
