"""The original's answers, which every check compares with, and what a self-test needs of a task."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from converters.proof.checks import Check
from converters.proof.tolerance import Tolerance

Metadata = Mapping[str, Any]
Outputs = Mapping[str, np.ndarray]
Feed = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Reference:
    """An original and its answers. ``folder`` contains the files of the pipeline's steps (``pre/``,
    ``post/``) and whatever ``Task.ask`` wrote there; ``outputs`` is what ``Task.ask`` returned."""

    name: str
    folder: Path
    metadata: Metadata
    outputs: Outputs
    tolerance: Tolerance


class ProvedTask(Protocol):
    """What the self-test and the comparison of layers use of a ``converters.task.Task``."""

    has_mask: ClassVar[bool]

    def tolerance(self, precision: str) -> Tolerance: ...

    def few(self, reference: Reference, rows: int) -> Reference: ...

    def feeds(self, reference: Reference) -> Iterator[Feed]: ...

    def layer_feeds(self, reference: Reference) -> Iterator[Feed]: ...

    def parity_checks(self, engine: Path, reference: Reference) -> list[Check]: ...

    def mask_checks(self, engine: Path, reference: Reference) -> list[Check]: ...
