"""What stands between the open loop and those who send; it needs no gevent."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Answer:
    """``fault`` is why the request counts as failed, or ''; ``parts_s`` as in Samples."""

    fault: str
    parts_s: Mapping[str, float]


class Source(Protocol):
    """Where requests come from, one after the other."""

    def prepare(self) -> Callable[[], Answer]:
        """The next request, built before it is due: what is returned sends it."""
        ...
