"""Which pipeline serves a request: the public one or, for its percentage of the callers or of the
requests, a canary."""

import hashlib
from collections.abc import Callable, Mapping


def choose(
    name: str, weights: Mapping[str, float], key: str, is_healthy: Callable[[str], bool]
) -> str:
    """``name``, or the canary into whose share ``key`` falls, if that is healthy now.

    If ``key`` is the caller, the choice is sticky: a caller gets the same version from one request
    to the next, from every worker, and raising a weight only adds callers. Otherwise it is drawn
    for this one request.
    """
    position = _position(name, key)
    for canary, percent in weights.items():
        if position < percent:
            return canary if is_healthy(canary) else name
        position -= percent
    return name


def _position(name: str, key: str) -> float:
    """From 0 to 100, spread evenly over all keys; in a different order for each pipeline."""
    digest = hashlib.blake2b(f"{name}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 * 100
