"""Which pipeline answers: the public one, or a canary for its percent of the callers, or of the
requests."""

import hashlib
from collections.abc import Callable, Mapping


def choose(
    name: str, weights: Mapping[str, float], who: str, answers: Callable[[str], bool]
) -> str:
    """``name``, or the canary into whose share ``who`` falls, if it ``answers`` now.

    ``who`` is the caller, and then it is sticky: a caller meets the same version from one request
    to the next, whatever the worker, and a weight that grows only adds callers. Or it is drawn for
    this one request.
    """
    place = _place(name, who)
    for canary, percent in weights.items():
        if place < percent:
            return canary if answers(canary) else name
        place -= percent
    return name


def _place(name: str, who: str) -> float:
    """From 0 to 100, evenly spread over all who ask; another order for each pipeline."""
    digest = hashlib.blake2b(f"{name}\0{who}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 * 100
