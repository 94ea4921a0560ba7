"""What stands between the open loop and those who send; it needs no gevent."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Response:
    """What became of a request: ``fault`` is why it counts as failed, or ''; ``parts_s`` as in
    Samples."""

    fault: str
    parts_s: Mapping[str, float]


@dataclass(frozen=True)
class Prepared:
    """A request that was built before it is due: ``send`` sends it and waits for its response.
    ``labels`` say whose it is, as in Samples."""

    send: Callable[[], Response]
    labels: Mapping[str, str] = field(default_factory=dict)


class Source(Protocol):
    """Where requests come from, one after the other."""

    def prepare(self) -> Prepared: ...
