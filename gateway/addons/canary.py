"""Which pipeline answers a caller: the public one, or a canary for its percent of the callers."""

import hashlib
from collections.abc import Callable, Mapping


def choose(
    name: str, weights: Mapping[str, float], caller: str, answers: Callable[[str], bool]
) -> str:
    """``name``, or the canary whose share this caller falls into, if it ``answers`` now.

    Sticky: a caller meets the same version from one request to the next, whatever the worker, and a
    weight that grows only adds callers.
    """
    place = _place(name, caller)
    for canary, percent in weights.items():
        if place < percent:
            return canary if answers(canary) else name
        place -= percent
    return name


def _place(name: str, caller: str) -> float:
    """From 0 to 100, evenly spread over the callers; another order for each pipeline."""
    digest = hashlib.blake2b(f"{name}\0{caller}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 * 100
