"""The operator's listener: the admin API on a port of its own."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI

from gateway.api.admin.routes import admin_router
from gateway.core import Gateway
from gateway.draining import DRAIN
from gateway.http.bounded import BoundedProtocol
from gateway.http.control import routes_of
from gateway.listening import listening_socket
from gateway.middleware import Middleware

STOP_S = 5.0


class AdminListener:
    """Serves the admin API in this worker; several workers share the port."""

    def __init__(self, gateway: Gateway, port: int) -> None:
        """Raises OSError when another program has the port."""
        settings = gateway.settings
        routes = routes_of(admin_router(gateway))
        app = Middleware(FastAPI(openapi_url=None), gateway, routes)
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
        # Of several workers, one whose requests take long to end must not keep the port from those
        # of a gateway that is started again, nor get calls that its successor could answer.
        if self._is_shared and self.release_port not in DRAIN.closers:
            DRAIN.closers.append(self.release_port)

    async def release_port(self, limit_s: float = STOP_S) -> None:
        """Accept no more connections; those that are open go on until ``stop``."""
        for server in self._server.servers:
            server.close()

    async def serve(self) -> None:
        """Return only when the server has ended, which it should not; a second call restarts it."""
        if self._task.done():
            self._socket.close()
            self._socket = self._listen()
            await self.start()
        await asyncio.wait([self._task])

    async def stop(self) -> None:
        if self.release_port in DRAIN.closers:
            DRAIN.closers.remove(self.release_port)
        self._server.should_exit = True
        await asyncio.wait([self._task], timeout=STOP_S)
        self._socket.close()


class _Server(uvicorn.Server):
    """Leaves signals to the gateway's main server."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
