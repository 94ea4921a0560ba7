"""V2 ``generate``, and the less common V2 routes: ``config`` and ``stats``.

Source: Triton's generate extension. JSON keys are the model's inputs; a value is one element or a
flat list of elements; ``parameters`` may contain more inputs.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

from tritonclient.grpc import service_pb2

from gateway.api.event_streams import EventStream, event, stream_responses
from gateway.api.v2.describe_model import check_readable, hide_paths, readable_statistics
from gateway.api.v2.message_json import plain
from gateway.api.v2.request import (
    MAX_PARAMETERS,
    REFUSED_PREFIX,
    checked_parameters,
    read_document,
)
from gateway.api.v2.response import json_data
from gateway.core import Gateway
from gateway.errors import InvalidRequest, UpstreamError, quoted
from gateway.http.handler import needs
from gateway.http.json_body import LARGE_BYTES, array_slices, to_json
from gateway.http.large_json import Arrays
from gateway.http.request_context import RequestContext
from gateway.limits.limiter import Admission
from gateway.models.catalogue import Model
from gateway.models.rows import tensor_of, tensor_of_text
from gateway.models.tensors import Tensor, check_model
from gateway.models.v2_request import V2Request
from gateway.render import Reply, json_reply

# Shared memory of other processes; and sequence ids, which only infer maps to the caller's own.
_REFUSED = (REFUSED_PREFIX, "sequence_")


class GenerateApi:
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    @needs("infer", model="model")
    async def generate(self, context: RequestContext) -> Reply:
        """One response; InvalidRequest for a model that sends several."""
        model, request = await self._request(context)
        if not model.decoupled:
            message = request.message()
            admission = await context.enter(self.gateway.access_control.admit(context, model))
            response = await self.gateway.infer(context, model, message, admission)
            if response.ByteSize() > LARGE_BYTES:
                return Reply(200, await self.gateway.off_loop.run(context, _document, response))
            return Reply(200, _document(response))
        return Reply(200, await context.while_connected(self._single(context, model, request)))

    @needs("infer", model="model")
    async def generate_stream(self, context: RequestContext) -> EventStream:
        """Each response is an event, as is the error that ends the stream early."""
        model, request = await self._request(context)
        events = self._documents(context, model, request)
        rights = self.gateway.access_control.bounded(context)
        return EventStream(context, events, self.gateway.settings.deadline_s, rights)

    @needs("read")
    async def config(self, context: RequestContext) -> Reply:
        name, version = self._readable(context)
        response = await self.gateway.describe(context, "ModelConfig", name, version)
        hide_paths(response.config)
        return json_reply(plain(response.config))

    @needs("read")
    async def stats(self, context: RequestContext) -> Reply:
        name, version = self._readable(context)
        response = await self.gateway.describe(context, "ModelStatistics", name, version)
        return json_reply(plain(response))

    @needs("read")
    async def every_stats(self, context: RequestContext) -> Reply:
        """The statistics of every model that the caller may read."""
        response = await self.gateway.describe(context, "ModelStatistics")
        readable = readable_statistics(self.gateway.catalogue, context, response)
        return json_reply({"model_stats": [plain(statistics) for statistics in readable]})

    def _readable(self, context: RequestContext) -> tuple[str, str]:
        name, version = context.param("model"), context.param("version")
        check_readable(self.gateway.catalogue, context, name, version)
        return name, version

    async def _request(self, context: RequestContext) -> tuple[Model, V2Request]:
        model, version = self.gateway.named_for_inference(context)
        request = await self.gateway.read(context, partial(_read, model, version))
        context.shorten_deadline(request.timeout_s)
        return model, request

    async def _single(self, context: RequestContext, model: Model, request: V2Request) -> bytes:
        documents = []
        admission = await context.enter(self.gateway.access_control.admit(context, model))
        metered = self._metered(context, model, request.message(), admission)
        with self.gateway.access_control.bounded(context):
            async with aclosing(metered) as responses:
                async for response in responses:
                    documents.append(_document(response))
                    if len(documents) > 1:
                        raise InvalidRequest(
                            f"model {model.name!r} sends several responses: use generate_stream"
                        )
        if not documents:
            raise UpstreamError("the model ended without a response: report the request id")
        return documents[0]

    async def _documents(
        self,
        context: RequestContext,
        model: Model,
        request: V2Request,
    ) -> AsyncGenerator[bytes, None]:
        """The events of a stream, with its admission."""
        async with self.gateway.access_control.admit(context, model) as admission:
            metered = self._metered(context, model, request.message(), admission)
            async with aclosing(metered) as responses:
                async for response in responses:
                    yield event(_document(response))

    async def _metered(
        self,
        context: RequestContext,
        model: Model,
        message: service_pb2.ModelInferRequest,
        admission: Admission | None,
    ) -> AsyncGenerator[service_pb2.ModelInferResponse, None]:
        """The model's responses; their tokens are counted, if a limit counts them."""
        meter = self.gateway.access_control.meter(context, admission, model)
        if meter:
            meter.prepare(message)
        async with aclosing(stream_responses(self.gateway, context, model, message)) as responses:
            async for response in responses:
                if meter:
                    meter.read(response)
                yield response


def _read(model: Model, version: str, body: bytes) -> V2Request:
    return parse_generate(model, version, *read_document(body))


def parse_generate(
    model: Model, version: str, body: object, arrays: Arrays | None = None
) -> V2Request:
    """The request; raises InvalidRequest, naming the key that is not an input or whose value does
    not fit. ``arrays`` are those that were cut out of the body."""
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object with the model's inputs")
    identifier = body.get("id")
    if identifier is None:
        identifier = ""
    if not isinstance(identifier, str):
        raise InvalidRequest("'id' must be a string")
    fields = {
        name: value
        for name, value in body.items()
        if name not in ("id", "parameters") and not (value is None and _is_optional(model, name))
    }
    unknown = next((name for name in fields if name not in model.inputs), None)
    if unknown is not None:
        declared = ", ".join(model.inputs)
        raise InvalidRequest(
            f"model {model.name!r} has no input {quoted(unknown)}: it takes {declared}"
        )
    raw_parameters = body.get("parameters")
    if raw_parameters is None:
        raw_parameters = {}
    checked = checked_parameters(raw_parameters, MAX_PARAMETERS + len(model.inputs))
    for name in checked:
        if name in fields:
            raise InvalidRequest(f"input {name!r} is in the body and in 'parameters': send it once")
        if name.startswith(_REFUSED):
            raise InvalidRequest(f"parameter {quoted(name)} works only with infer")
    fields |= {name: value for name, value in checked.items() if name in model.inputs}
    parameters = {name: value for name, value in checked.items() if name not in model.inputs}
    tensors = [_tensor(model, name, value, arrays) for name, value in fields.items()]
    check_model(model, tensors)
    return V2Request(model.name, version, identifier, tensors, {}, parameters)


def _is_optional(model: Model, name: str) -> bool:
    return name in model.inputs and model.inputs[name].optional


def _tensor(model: Model, name: str, value: object, arrays: Arrays | None) -> Tensor:
    text = arrays.of(value) if arrays else None
    if text is not None:
        return tensor_of_text(model, name, text)
    return tensor_of(model, name, value if isinstance(value, list) else [value])


def _document(response: service_pb2.ModelInferResponse) -> bytes:
    """The JSON as Triton writes it: outputs by name, a single element bare, more as a flat list."""
    document: dict[str, object] = {
        "model_name": response.model_name,
        "model_version": response.model_version,
    }
    if response.id:
        document["id"] = response.id
    parts = [to_json(document)[:-1]]
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        values = json_data(output.name, output.datatype, list(output.shape), raw)
        parts += (b",", to_json(output.name), b":")
        parts += [to_json(values[0])] if len(values) == 1 else array_slices(values)
    return b"".join((*parts, b"}"))
