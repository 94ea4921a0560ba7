"""A plain ASGI endpoint: an exchange in, a reply out. The hot path has no layer between."""

from collections.abc import Awaitable, Callable

from starlette.types import Receive, Scope, Send

from gateway.exchange import Exchange
from gateway.reply import Reply

Handler = Callable[[Exchange], Awaitable[Reply]]


class Endpoint:
    """Starlette takes an instance (not a function) for an ASGI app and adds nothing to it."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = await self.handler(scope["exchange"])
        await reply.send(send)
