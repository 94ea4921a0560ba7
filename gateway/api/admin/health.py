"""``/healthz`` and ``/readyz`` for operators, without a key; ``/`` redirects to ``/docs``."""

from typing import Any

from starlette.routing import Route

from gateway.background import readable_readiness, readiness, shown_state
from gateway.core import Gateway
from gateway.errors import GatewayError
from gateway.http.handler import Endpoint, open_to_all
from gateway.http.request_context import RequestContext
from gateway.render import Reply, json_reply


class HealthApi:
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    def routes(self) -> list[Route]:
        table = {"/": self.start, "/healthz": self.healthz, "/readyz": self.readyz}
        return [Route(path, Endpoint(table[path]), methods=["GET"]) for path in table]

    @open_to_all
    async def start(self, context: RequestContext) -> Reply:
        return Reply(307, b"", headers=[(b"location", b"/docs")])

    @open_to_all
    async def healthz(self, context: RequestContext) -> Reply:
        return json_reply({"status": "ok"})

    @open_to_all
    async def readyz(self, context: RequestContext) -> Reply:
        """200 or 503 for everybody. Once there are tenants, pipelines are named only to a caller
        who may read them: a name tells a stranger something, and a fault tells more."""
        faults = readiness(self.gateway)
        ready = not any(faults.values())
        document: dict[str, Any] = {"status": "ready" if ready else "not ready"}
        if await self._is_identified(context):
            readable = readable_readiness(self.gateway, context)
            document["pipelines"] = {
                name: shown_state(self.gateway, name, fault) for name, fault in readable.items()
            }
        reply = json_reply(document)
        reply.status = 200 if ready else 503
        return reply

    async def _is_identified(self, context: RequestContext) -> bool:
        if not self.gateway.access_control.policy.current.rules.tenants:
            return True
        try:
            await self.gateway.access_control.identify(context)
        except GatewayError:
            return False  # a probe with an old key still learns whether the gateway is ready
        return True
