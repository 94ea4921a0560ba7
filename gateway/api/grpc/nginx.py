"""``/internal/decide``: whether nginx may pass a gRPC call straight on to Triton (docs/grpc.md).

nginx does not see the message, so neither side knows which model it names: only a caller who may
use every model is allowed. Nor do we learn when the call ends: requests are counted, concurrency
and tokens are not.
"""

from urllib.parse import quote

from tritonclient.grpc import service_pb2

from gateway.api.grpc.status import STATUS
from gateway.core import Gateway
from gateway.errors import Forbidden, GatewayError, NotFound
from gateway.http.handler import needs
from gateway.http.request_context import RequestContext
from gateway.limits.limit import Subject, checks_of
from gateway.listening import peer_address
from gateway.render import Reply

PATH = "/internal/decide"
SERVICE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
METHOD = b"x-tidegate-method"  # the call's path, set by nginx
# What the locations in deploy/nginx let through.
ACTIONS = {
    f"/{SERVICE.full_name}/{name}": action
    for action, names in (
        ("read", "ServerLive ServerReady ServerMetadata"),
        ("read", "ModelReady ModelMetadata ModelConfig ModelStatistics"),
        ("infer", "ModelInfer ModelStreamInfer"),
    )
    for name in names.split()
}
_ANY_MODEL = "\0any"  # the internal models, and those not yet published


class NginxApi:
    """Served by the gateway's HTTP listener, which itself answers 401."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    @needs("read")
    async def decide(self, context: RequestContext) -> Reply:
        """204, or 403 with the gRPC status: ``auth_request`` passes on no other refusal."""
        client = context.scope.get("client")
        if not client or not peer_address(client[0]).is_loopback:
            raise NotFound(f"there is no {PATH}: see /docs for what there is")
        try:
            await self._admit(context)
        except GatewayError as error:
            return _refusal(error)
        return Reply(204, b"")

    async def _admit(self, context: RequestContext) -> None:
        action = ACTIONS.get(context.headers.get(METHOD, b"").decode("latin-1"))
        if action is None or context.principal is None:
            raise Forbidden("this method is not offered through the gateway")
        context.require(action)
        for name in (*self.gateway.catalogue.models, _ANY_MODEL):
            if not context.access.allowed(context.principal, action, name):
                raise Forbidden(
                    "this port is only for callers who may use every model: use the gateway's "
                    "gRPC port"
                )
        limits = context.access.limits(context.principal, "") if action == "infer" else ()
        subject = Subject(context.principal.tenant, context.principal.id, "")
        checks = checks_of([limit for limit in limits if limit.kind == "requests"], subject)
        async with self.gateway.access_control.limiter.admit(checks):
            pass


def _refusal(error: GatewayError) -> Reply:
    headers = [
        (b"tidegate-grpc-status", str(STATUS[error.code].value[0]).encode()),
        (b"tidegate-grpc-message", quote(error.message, safe=" ':,`").encode()),
        (b"tidegate-code", error.code.encode()),
    ]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(error.retry_after_s).encode()))
    return Reply(403, b"", headers=headers)
