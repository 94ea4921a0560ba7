"""A plain ASGI endpoint: an exchange in, a reply out. The hot path has no layer between."""

from collections.abc import Awaitable, Callable
from functools import cached_property

from starlette.types import Receive, Scope, Send

from gateway.http.exchange import Exchange
from gateway.http.reply import Sendable
from gateway.policy.routes import OPEN, declared

Handler = Callable[[Exchange], Awaitable[Sendable]]


class Endpoint:
    """Starlette takes an instance (not a function) for an ASGI app and adds nothing to it.

    Raises Undeclared for a handler that does not say what it needs of its caller.
    """

    def __init__(self, handler: Handler) -> None:
        self.handler, self.policy = handler, declared(handler)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope["exchange"]
        if self.policy is not OPEN:
            exchange.require(self.policy.action, scope["path_params"].get(self.policy.model, ""))
        reply = await self.handler(exchange)
        await reply.send(send)


class LateEndpoint:
    """As ``Endpoint``, of a handler that is found (and its add-on imported) at the first call."""

    def __init__(self, find: Callable[[], Handler]) -> None:
        self._find = find

    @cached_property
    def _endpoint(self) -> Endpoint:
        return Endpoint(self._find())

    @property
    def handler(self) -> Handler:
        return self._endpoint.handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._endpoint(scope, receive, send)
