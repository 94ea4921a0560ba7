"""What each route asks of its caller, declared where its handler stands.

    @needs("infer", model="model")
    async def infer(self, exchange): ...

A route that declares nothing is not served: ``declared`` raises when the app is put together.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
_ATTRIBUTE = "__tidegate_policy__"


@dataclass(frozen=True)
class Policy:
    """``model`` is the path parameter that names the model; '' when the body does, or none is."""

    action: Literal["open", "read", "infer", "admin"]
    model: str = ""


OPEN = Policy("open")  # no identity needed


class Undeclared(TypeError):
    """A route without a policy; the message names it."""


def needs(action: Literal["read", "infer", "admin"], model: str = "") -> Callable[[F], F]:
    """Declare what a handler needs."""
    return _declare(Policy(action, model))


def open_to_all(handler: F) -> F:
    """Declare that a handler needs no identity."""
    return _declare(OPEN)(handler)


def declared(handler: Any) -> Policy:
    """What the handler declared; Undeclared if nothing."""
    policy = getattr(handler, _ATTRIBUTE, None)
    if not isinstance(policy, Policy):
        raise Undeclared(f"{getattr(handler, '__qualname__', handler)} declares no policy: @needs")
    return policy


def undeclared(routes: Iterable[Any], table: Mapping[str, Policy]) -> list[str]:
    """The paths of routes that declare nothing; ``table`` declares for routes that are not ours.

    A route's handler is its ``endpoint``, or what that holds as ``handler`` (``Endpoint``).
    """
    return [
        route.path
        for route in routes
        if route.path not in table and not hasattr(_handler(route), _ATTRIBUTE)
    ]


def _handler(route: Any) -> Any:
    endpoint = getattr(route, "endpoint", None)
    return getattr(endpoint, "handler", endpoint)


def _declare(policy: Policy) -> Callable[[F], F]:
    def mark(handler: F) -> F:
        setattr(handler, _ATTRIBUTE, policy)
        return handler

    return mark
