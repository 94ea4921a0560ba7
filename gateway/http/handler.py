"""A plain ASGI endpoint: a RequestContext in, a Reply out, with no layer between on the hot path.

What it requires of its caller is declared on its handler:

    @needs("infer", model="model")
    async def infer(self, context): ...

A handler that declares nothing is not served: ``declared`` raises when the app is built.
"""

from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from starlette.types import Receive, Scope, Send

from gateway.errors import Forbidden
from gateway.http.request_context import RequestContext
from gateway.render import PIECE_BYTES, Reply

F = TypeVar("F", bound=Callable[..., Any])
_ATTRIBUTE = "__tidegate_policy__"


IN_BODY = "(body)"  # the request's body names the model: the handler requires the right to it


class Policy(NamedTuple):
    """``model`` is the path parameter that names the model, or ``IN_BODY``; '' if there is none."""

    action: Literal["open", "read", "infer", "admin"]
    model: str = ""


REFUSED_BODY_BYTES = 64 * 1024
OPEN = Policy("open")  # no identity needed


class Undeclared(TypeError):
    """A route without a policy; the message names it."""


def needs(action: Literal["open", "read", "infer", "admin"], model: str = "") -> Callable[[F], F]:
    """Declare the right that a handler's caller needs."""

    def mark(handler: F) -> F:
        setattr(handler, _ATTRIBUTE, Policy(action, model))
        return handler

    return mark


open_to_all = needs("open")  # it needs no identity


def declared(handler: object) -> Policy:
    """The policy that the handler declared. Raises Undeclared if there is none."""
    policy = getattr(handler, _ATTRIBUTE, None)
    if not isinstance(policy, Policy):
        raise Undeclared(f"{getattr(handler, '__qualname__', handler)} declares no policy: @needs")
    return policy


class Sendable(Protocol):
    """What a handler returns: a ``Reply``, or a stream (``EventStream``)."""

    async def send(self, send: Send) -> None: ...


Handler = Callable[[RequestContext], Awaitable[Sendable]]


class Endpoint:
    """An ASGI app: Starlette wraps a function, but calls an instance such as this directly.

    Raises Undeclared for a handler that does not declare what its caller needs.
    """

    def __init__(self, handler: Handler) -> None:
        self.handler, self.policy = handler, declared(handler)
        self._is_open = self.policy == OPEN

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context: RequestContext = scope["context"]
        if self.policy.model == IN_BODY:
            _allow_reading(context, self.policy.action)
        elif not self._is_open:
            context.require(self.policy.action, scope["path_params"].get(self.policy.model, ""))
        try:
            reply = await self.handler(context)
            if type(reply) is Reply and len(reply.body) > PIECE_BYTES:
                context.count_buffered(len(reply.body))
            await reply.send(send)
        except BaseException as error:
            await context.leave(error)
            raise
        if context.entered:
            await context.leave(None)


def _allow_reading(context: RequestContext, action: str) -> None:
    """Allow the body to be read, to find the model that it names. A caller who may do this with no
    model at all is refused by the handler, so that the refusal can name the model: for that, only a
    short body is read.
    """
    try:
        context.require(action)
    except Forbidden:
        context.body_limit_bytes = min(context.body_limit_bytes, REFUSED_BODY_BYTES)


class LateEndpoint:
    """An ``Endpoint`` whose handler's API is imported and created at the first call."""

    def __init__(self, handler: Callable[[], Handler]) -> None:
        self._handler = handler

    @cached_property
    def endpoint(self) -> Endpoint:
        return Endpoint(self._handler())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.endpoint(scope, receive, send)
