"""V2 ``generate``, and what a V2 client asks of a model besides: ``config`` and ``stats``.

Source: Triton's generate extension. JSON keys are the model's inputs; a value is one element or a
flat list of them; ``parameters`` may hold more of both.
"""

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from typing import Any

import orjson
from tritonclient.grpc import service_pb2

from gateway.addons.generate.message_json import plain
from gateway.addons.streams import EventStream, answers, event
from gateway.core import Gateway
from gateway.doors.described import check_readable, hide_paths, shown_statistics
from gateway.doors.v2_request import REFUSED_PREFIX, V2Request
from gateway.doors.v2_response import json_data
from gateway.errors import Malformed, UpstreamBroke
from gateway.http.endpoint import Reply, json_reply, needs
from gateway.http.exchange import Exchange
from gateway.http.json_body import parse_json
from gateway.models.catalogue import Model
from gateway.models.rows import tensor_of
from gateway.models.tensors import Tensor, check_model

# Memory of other processes; and a sequence's id, which only infer maps to the caller's own.
_REFUSED = (REFUSED_PREFIX, "sequence_")
_OPTIONS = orjson.OPT_SERIALIZE_NUMPY


class GenerateDoor:
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    @needs("infer", model="model")
    async def generate(self, exchange: Exchange) -> Reply:
        """One answer; of a model that gives several, Malformed."""
        model, request = await self._request(exchange)
        if not model.decoupled:
            message = request.message()
            async with self.gateway.guard.admit(exchange, model) as admission:
                answer = await self.gateway.infer(exchange, model, message, admission)
            return Reply(200, _document(answer))
        return Reply(200, await exchange.while_connected(self._single(exchange, model, request)))

    @needs("infer", model="model")
    async def generate_stream(self, exchange: Exchange) -> EventStream:
        """Each answer is an event, as is the error that ends them early."""
        model, request = await self._request(exchange)
        events = self._documents(exchange, model, request, event)
        return EventStream(exchange, events, self.gateway.settings.deadline_s)

    @needs("read")
    async def config(self, exchange: Exchange) -> Reply:
        name, version = self._readable(exchange)
        found = await self.gateway.pool.describe("ModelConfig", name, version)
        hide_paths(found.config)
        return json_reply(plain(found.config))

    @needs("read")
    async def stats(self, exchange: Exchange) -> Reply:
        name, version = self._readable(exchange)
        found = await self.gateway.pool.describe("ModelStatistics", name, version)
        return json_reply(plain(found))

    @needs("read")
    async def every_stats(self, exchange: Exchange) -> Reply:
        """Of each model that the caller may read."""
        found = await self.gateway.pool.describe("ModelStatistics")
        shown = shown_statistics(self.gateway.catalogue, exchange, found)
        return json_reply({"model_stats": [plain(each) for each in shown]})

    def _readable(self, exchange: Exchange) -> tuple[str, str]:
        name, version = exchange.param("model"), exchange.param("version")
        check_readable(self.gateway.catalogue, exchange, name, version)
        return name, version

    async def _request(self, exchange: Exchange) -> tuple[Model, V2Request]:
        model, version = self.gateway.named(exchange)
        request = parse_generate(model, version, parse_json(await exchange.body()))
        exchange.shorten_deadline(request.timeout_s)
        return model, request

    async def _single(self, exchange: Exchange, model: Model, request: V2Request) -> bytes:
        documents = []
        async with aclosing(self._documents(exchange, model, request, bytes)) as found:
            async for document in found:
                documents.append(document)
                if len(documents) > 1:
                    raise Malformed(f"{model.name!r} gives several answers: use generate_stream")
        if not documents:
            raise UpstreamBroke("the model ended without an answer: report the request id")
        return documents[0]

    async def _documents(
        self,
        exchange: Exchange,
        model: Model,
        request: V2Request,
        shown: Callable[[bytes], bytes],
    ) -> AsyncGenerator[bytes, None]:
        message = request.message()
        async with self.gateway.guard.admit(exchange, model) as admission:
            meter = self.gateway.guard.meter(admission, model)
            if meter:
                meter.prepare(message)
            async with aclosing(answers(self.gateway, exchange, model, message)) as found:
                async for answer in found:
                    if meter:
                        meter.read(answer)
                    yield shown(_document(answer))


def parse_generate(model: Model, version: str, body: Any) -> V2Request:
    """The request; Malformed names the key that no input has, or whose value does not fit it."""
    if not isinstance(body, dict):
        raise Malformed("the body must be a JSON object with the model's inputs")
    fields = {name: value for name, value in body.items() if name not in ("id", "parameters")}
    more = body.get("parameters", {})
    identity = body.get("id", "")
    if not isinstance(more, dict) or not isinstance(identity, str):
        raise Malformed("'parameters' must be an object, and 'id' a string")
    twice = sorted(set(fields) & set(more))
    if twice:
        raise Malformed(f"input {twice[0]!r} is given twice")
    refused = sorted(name for name in more if name.startswith(_REFUSED))
    if refused:
        raise Malformed(f"parameter {refused[0]!r} cannot be used with generate: see infer")
    fields |= {name: value for name, value in more.items() if name in model.inputs}
    parameters = {name: value for name, value in more.items() if name not in model.inputs}
    tensors = list(_tensors(model, fields))
    check_model(model, tensors)
    return V2Request(model.name, version, identity, tensors, {}, parameters)


def _tensors(model: Model, fields: Mapping[str, Any]) -> Iterator[Tensor]:
    for name, value in fields.items():
        if name not in model.inputs:
            declared = ", ".join(model.inputs)
            raise Malformed(f"model {model.name!r} has no input {name!r}: it takes {declared}")
        yield tensor_of(model, name, value if isinstance(value, list) else [value])


def _document(answer: service_pb2.ModelInferResponse) -> bytes:
    """As Triton: each output by its name, one element bare and more as a flat list."""
    document: dict[str, Any] = {
        "model_name": answer.model_name,
        "model_version": answer.model_version,
    }
    if answer.id:
        document["id"] = answer.id
    for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        values = json_data(output.name, output.datatype, list(output.shape), raw)
        document[output.name] = values[0] if len(values) == 1 else values
    return orjson.dumps(document, option=_OPTIONS)
