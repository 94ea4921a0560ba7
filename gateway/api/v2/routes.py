"""The V2 routes that every gateway serves; ``generate`` has the others."""

from typing import Any

from starlette.routing import Route

from gateway.api.v2 import request as v2_request
from gateway.api.v2 import response as v2_response
from gateway.api.v2.request import HEADER_LENGTH
from gateway.background import readable_readiness
from gateway.core import Gateway
from gateway.errors import InvalidRequest, NoCapacity
from gateway.http.handler import Endpoint, Handler, needs
from gateway.http.request_context import RequestContext
from gateway.models.catalogue import Model
from gateway.models.v2_request import V2Request
from gateway.render import Reply, json_reply

NAME = "triton"  # NVIDIA's clients look for it: the extensions are Triton's
EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "parameters",
    "statistics",
]


class V2Api:
    """Handlers of the V2 routes; ``routes`` is the table."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    def routes(self) -> list[Route]:
        model_path = "/v2/models/{model}"
        table: list[tuple[str, str, Handler]] = [
            *(
                route
                for prefix in (model_path, model_path + "/versions/{version}")
                for route in (
                    ("POST", prefix + "/infer", self.infer),
                    ("GET", prefix + "/ready", self.model_ready),
                    ("GET", prefix, self.metadata),
                )
            ),
            ("GET", "/v2", self.server),
            ("GET", "/v2/models", self.models),
            ("GET", "/v2/health/live", self.live),
            ("GET", "/v2/health/ready", self.ready),
        ]
        return [Route(path, Endpoint(handler), methods=[method]) for method, path, handler in table]

    @needs("infer", model="model")
    async def infer(self, context: RequestContext) -> Reply:
        """Check the request against the model's declaration, then run it."""
        model, version = self.gateway.named_for_inference(context)
        if model.decoupled:
            raise InvalidRequest(f"model {model.name!r} streams: it cannot be called with infer")
        request = await self._parse(context, model, version)
        context.shorten_deadline(request.timeout_s)
        serving = self.gateway.serving(context, model)
        suits_http = model.uses_http_upstream and request.is_plain and request.asks_little_json
        if suits_http and self.gateway.response_cache:  # which keeps what Triton says over gRPC
            suits_http = not self.gateway.may_be_cached(context, serving, version)
        if suits_http and serving == model.name:
            return await self._infer_over_http(context, model, request)
        message = request.message()
        request.tensors = []  # the message has their bytes: do not hold them twice
        self.gateway.sequences.put_own(message, context.tenant)
        admission = await context.enter(self.gateway.access_control.admit(context, model))
        response = await self.gateway.infer(context, model, message, admission)
        return await self._render(context, request, response)

    async def _infer_over_http(
        self, context: RequestContext, model: Model, request: V2Request
    ) -> Reply:
        """Over HTTP/1.1 if possible, else over gRPC; admitted once."""
        admission = await context.enter(self.gateway.access_control.admit(context, model))
        reply = await self.gateway.http_upstream(context, model, request)
        if reply:
            return reply
        message = request.message()
        response = await self.gateway.infer(context, model, message, admission, over_grpc=True)
        return await self._render(context, request, response)

    async def _parse(self, context: RequestContext, model: Model, version: str) -> V2Request:
        body = await context.body()
        length = context.headers.get(HEADER_LENGTH)
        parse, off_loop = v2_request.parse, self.gateway.off_loop
        if v2_request.is_large(model, body, length):
            return await off_loop.run(context, parse, model, version, body, length)
        return parse(model, version, body, length)

    async def _render(self, context: RequestContext, request: V2Request, response: object) -> Reply:
        render, off_loop = v2_response.render, self.gateway.off_loop
        if v2_response.is_large(request, response):
            return await off_loop.run(context, render, request, response)
        return render(request, response)

    @needs("read")
    async def models(self, context: RequestContext) -> Reply:
        """The names of the models that the caller may read, as KServe lists them."""
        names = sorted(filter(context.may_read, self.gateway.catalogue.models))
        return json_reply({"models": names})

    @needs("read", model="model")
    async def metadata(self, context: RequestContext) -> Reply:
        metadata = await self.gateway.describe_model(context, "ModelMetadata")
        return json_reply(
            {
                "name": metadata.name,
                "versions": list(metadata.versions),
                "platform": metadata.platform,
                "inputs": _tensor_metadata(metadata.inputs),
                "outputs": _tensor_metadata(metadata.outputs),
            }
        )

    @needs("read", model="model")
    async def model_ready(self, context: RequestContext) -> Reply:
        """Ready if Triton says so and the last golden probe passed."""
        model, _ = self.gateway.named(context)
        fault = self.gateway.probes.get(model.name)
        if fault or not (await self.gateway.describe_model(context, "ModelReady")).ready:
            raise NoCapacity(f"model {model.name!r} {fault or 'is not ready'}", retry_after_s=1)
        return Reply(200, b"")

    @needs("read")
    async def server(self, context: RequestContext) -> Reply:
        return json_reply({"name": NAME, "version": "2", "extensions": EXTENSIONS})

    @needs("read")
    async def live(self, context: RequestContext) -> Reply:
        return json_reply({"live": True})  # KServe's client reads it

    @needs("read")
    async def ready(self, context: RequestContext) -> Reply:
        pipelines = readable_readiness(self.gateway, context)
        faults = {name: fault for name, fault in pipelines.items() if fault}
        if faults:
            raise NoCapacity(f"not ready: {faults}", retry_after_s=1)
        return json_reply({"ready": True})


def _tensor_metadata(tensors: Any) -> list[dict[str, Any]]:
    return [
        {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        for tensor in tensors
    ]
