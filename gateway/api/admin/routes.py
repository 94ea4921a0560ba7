"""The operator's API, on its own listener: metrics, the policy in force, replicas, models."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route

from gateway.core import Gateway
from gateway.http.bounded import BoundedProtocol
from gateway.http.handler import Endpoint, Handler, needs, open_to_all
from gateway.http.request_context import RequestContext
from gateway.listening import listening_socket
from gateway.middleware import Middleware
from gateway.render import Reply, json_reply

METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
STOP_S = 5.0


class AdminApi:
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._watch_file = gateway.settings.state_folder / "watch.prom"

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
        return Reply(200, self.gateway.metrics.page(self._watch_file), METRICS_TYPE)

    @needs("admin")
    async def policy(self, context: RequestContext) -> Reply:
        """The rules in force: names of issuers and certificates, no secrets (the file has none)."""
        current = self.gateway.access_control.policy.current
        rules = current.rules.model_dump(mode="json")
        return json_reply({"version": current.version, "rules": rules})

    @needs("admin")
    async def replicas(self, context: RequestContext) -> Reply:
        """Each replica, whether it receives requests, and if not, why."""
        replicas = [
            {
                "address": replica.address,
                "health": replica.health.name.lower(),
                "reason": replica.reason,
                "inflight": replica.inflight,
                "models": sorted(replica.versions or ()),
                "probes": {name: fault for name, fault in replica.probes.items() if fault},
            }
            for replica in self.gateway.pool.replicas
        ]
        return json_reply({"replicas": replicas})

    @needs("admin")
    async def models(self, context: RequestContext) -> Reply:
        """Every model that can be called, and the result of its last golden probe."""
        gateway = self.gateway
        models = [
            {
                "name": model.name,
                "versions": model.versions,
                "public": model.endpoint_schema is not None,
                "probe": gateway.probes.get(model.name, ""),
                "proved": model.probe is not None,
            }
            for model in gateway.catalogue.models.values()
        ]
        return json_reply({"models": models, "faults": gateway.reader.faults})


class AdminListener:
    """Serves the admin API in this worker; several workers share the port."""

    def __init__(self, gateway: Gateway, port: int) -> None:
        """Raises OSError when another program has the port."""
        routes = AdminApi(gateway).routes()
        settings = gateway.settings
        app = Middleware(Starlette(routes=routes), gateway, routes)
        http_options: dict[str, Any] = {"http": BoundedProtocol}
        if settings.tls_certificate_file:
            from gateway.http.tls import Tls

            http_options |= Tls(settings).http()
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
            **http_options,
        )
        self._address = (settings.host, port)
        self._is_shared = settings.workers > 1
        self._socket = self._listen()

    def _listen(self) -> socket.socket:
        listener = listening_socket(*self._address, is_shared=self._is_shared)
        listener.listen()  # a client that connects before the server has started waits
        return listener

    async def start(self) -> None:
        self._server = _Server(self._config)
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))

    async def serve(self) -> None:
        """Return only when the server has ended, which it should not; a second call restarts it."""
        if self._task.done():
            self._socket.close()
            self._socket = self._listen()
            await self.start()
        await asyncio.wait([self._task])

    async def stop(self) -> None:
        self._server.should_exit = True
        await asyncio.wait([self._task], timeout=STOP_S)
        self._socket.close()


class _Server(uvicorn.Server):
    """Leaves signals to the gateway's main server."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
