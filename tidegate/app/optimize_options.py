"""What ``tidegate optimize`` is to do."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

BOTH = ("model", "config")


@dataclass(frozen=True)
class OptimizeOptions:
    """The command line's arguments."""

    name: str
    source: str | None = None
    task: str | None = None
    samples: Path | None = None
    source_options: Mapping[str, str] = field(default_factory=dict)
    only: str | None = None
    budget_s: float = 600.0
    precisions: tuple[str, ...] = ()
    allow_batch_dependent: bool = False
    min_cosine: float = 0.0
    min_agreement: float = 0.0
    p99_ms: float | None = None
    connections: int = 32
    commit: bool = False
    publish: bool = False
    fresh: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.only,) if self.only else BOTH
