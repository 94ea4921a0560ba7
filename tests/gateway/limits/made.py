"""Limits as the tests write them: scope, kind, amount, window_s, burst."""

from typing import Any

from gateway.limits.limit import Limit


def limit_of(*values: Any, **more: Any) -> Limit:
    return Limit(**dict(zip(Limit.model_fields, values, strict=False)), **more)
