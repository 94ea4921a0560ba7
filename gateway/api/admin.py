"""The operator's API, on a listener of its own: metrics, the policy in force, the replicas."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route

from gateway.core import Gateway
from gateway.http.buffered import BufferedProtocol
from gateway.http.handler import Endpoint, Handler, Reply, json_reply, needs, open_to_all
from gateway.http.middleware import Middleware
from gateway.http.request_context import RequestContext
from gateway.listening import listening_socket

METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
STOP_S = 5.0


class AdminApi:
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._watched = gateway.settings.state_folder / "watch.prom"

    def routes(self) -> list[Route]:
        table: dict[str, Handler] = {
            "/healthz": self.health,
            "/metrics": self.metrics,
            "/admin/policy": self.policy,
            "/admin/replicas": self.replicas,
            "/admin/models": self.models,
        }
        return [Route(path, Endpoint(table[path]), methods=["GET"]) for path in table]

    @open_to_all
    async def health(self, context: RequestContext) -> Reply:
        return json_reply({"status": "ok"})

    @needs("admin")
    async def metrics(self, context: RequestContext) -> Reply:
        return Reply(200, self.gateway.metrics.page(self._watched), METRICS_TYPE)

    @needs("admin")
    async def policy(self, context: RequestContext) -> Reply:
        """What is in force; issuers' and certificates' names, no secret (the file holds none)."""
        current = self.gateway.access_control.policy.current
        rules = current.rules.model_dump(mode="json")
        return json_reply({"version": current.version, "rules": rules})

    @needs("admin")
    async def replicas(self, context: RequestContext) -> Reply:
        """Each replica, whether it is asked, and if not, why."""
        found = [
            {
                "address": each.place,
                "health": each.health.name.lower(),
                "reason": each.reason,
                "inflight": each.inflight,
                "models": sorted(each.versions or ()),
                "probes": {name: fault for name, fault in each.probes.items() if fault},
            }
            for each in self.gateway.pool.replicas
        ]
        return json_reply({"replicas": found})

    @needs("admin")
    async def models(self, context: RequestContext) -> Reply:
        """Every model that could be called, and what its last golden probe said."""
        gateway = self.gateway
        found = [
            {
                "name": model.name,
                "versions": model.versions,
                "public": model.endpoint_schema is not None,
                "probe": gateway.probes.get(model.name, ""),
                "proved": model.golden is not None,
            }
            for model in gateway.catalogue.models.values()
        ]
        return json_reply({"models": found, "faults": gateway.reader.faults})


class AdminListener:
    """Serves the admin API in this worker; several workers share the port."""

    def __init__(self, gateway: Gateway, port: int) -> None:
        """OSError when another program has the port."""
        routes = AdminApi(gateway).routes()
        settings = gateway.settings
        app = Middleware(Starlette(routes=routes), gateway, routes)
        secured: dict[str, Any] = {"http": BufferedProtocol}
        if settings.tls_certificate_file:
            from gateway.http.tls import Tls

            secured |= Tls(settings).http()
        self._config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            timeout_keep_alive=settings.keep_alive_s,
            timeout_graceful_shutdown=int(STOP_S),
            **secured,
        )
        self._address, self._is_shared = (settings.host, port), settings.workers > 1
        self._socket = self._bound()

    def _bound(self) -> socket.socket:
        bound = listening_socket(*self._address, is_shared=self._is_shared)
        bound.listen()  # who comes before the server has begun waits
        return bound

    async def start(self) -> None:
        self._server = _Server(self._config)
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))

    async def serve(self) -> None:
        """Until the server has ended, which it should not; called again, start another one."""
        if self._task.done():
            self._socket.close()
            self._socket = self._bound()
            await self.start()
        await asyncio.wait([self._task])

    async def stop(self) -> None:
        self._server.should_exit = True
        await asyncio.wait([self._task], timeout=STOP_S)
        self._socket.close()


class _Server(uvicorn.Server):
    """Signals belong to the server that this one stands beside."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
