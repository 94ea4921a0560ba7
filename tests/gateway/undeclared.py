"""Which routes of an application declare no policy."""

from collections.abc import Iterable, Mapping
from typing import Any

from gateway.http.handler import LateEndpoint, Policy, Undeclared, declared


def undeclared(routes: Iterable[Any], table: Mapping[str, Policy]) -> list[str]:
    """The paths of routes that declare nothing; ``table`` has the policies of routes that are not
    ours."""
    return [route.path for route in routes if route.path not in table and not _declares(route)]


def _declares(route: Any) -> bool:
    """A route's handler is its ``endpoint``, or that endpoint's ``handler``."""
    endpoint = getattr(route, "endpoint", None)
    if isinstance(endpoint, LateEndpoint):
        endpoint = endpoint.endpoint
    try:
        declared(getattr(endpoint, "handler", endpoint))
    except Undeclared:
        return False
    return True
