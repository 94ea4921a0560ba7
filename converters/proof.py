"""What a proof is made of: checks, each with what was measured and what was allowed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Check:
    """One measurement. ``passed`` is measured against ``limit``; ``worst`` names the sample."""

    name: str
    measured: float
    limit: float
    passed: bool
    worst: str = ""
    least: bool = False  # ``limit`` is the least that is allowed, not the most

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Check":
        """What ``to_dict`` wrote."""
        measured, limit = fields["measured"], fields["limit"]
        numbers = {
            "measured": float("nan") if measured is None else measured,
            "limit": float("inf") if limit is None else limit,
        }
        return cls(**{**fields, **numbers})

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, which knows no NaN and no infinity: null stands for both."""
        numbers = {"measured": self.measured, "limit": self.limit}
        finite = {key: number if isfinite(number) else None for key, number in numbers.items()}
        return {**asdict(self), **finite}

    @property
    def allowed(self) -> str:
        return f"{'at least' if self.least else 'at most'} {self.limit:g}"

    def line(self) -> str:
        verdict = "ok  " if self.passed else "FAIL"
        where = f"  worst: {self.worst}" if self.worst and not self.passed else ""
        return f"{verdict} {self.name}: {self.measured:.3g} (must be {self.allowed}){where}"


def at_most(name: str, measured: float, limit: float, worst: str = "") -> Check:
    # A NaN compares false, and so it fails.
    return Check(name, float(measured), limit, bool(measured <= limit), worst)


def at_least(name: str, measured: float, limit: float, worst: str = "") -> Check:
    return Check(name, float(measured), limit, bool(measured >= limit), worst, least=True)


def worst_difference(
    name: str, got: np.ndarray, wanted: np.ndarray, limit: float, labels: Sequence[str]
) -> Check:
    """The largest absolute difference of two arrays [n, ...], and the row it stands in."""
    if got.shape != wanted.shape:
        return Check(name, float("nan"), limit, False, f"shape {got.shape}, not {wanted.shape}")
    if not np.isfinite(got).all():
        row = int(np.argwhere(~np.isfinite(got))[0][0])
        return Check(name, float("nan"), limit, False, f"{labels[row]!r} is not finite")
    gaps = np.abs(got.astype(np.float64) - wanted).reshape(len(got), -1)
    row, column = map(int, np.unravel_index(int(gaps.argmax()), gaps.shape))
    values = (got.reshape(gaps.shape)[row, column], wanted.reshape(gaps.shape)[row, column])
    worst = f"{labels[row][:60]!r} element {column}: {values[0]:.6g}, original {values[1]:.6g}"
    return at_most(name, float(gaps.max()), limit, worst)


@dataclass(frozen=True)
class Proof:
    """All checks of one subject: the graph, or the pipeline through Triton."""

    subject: str
    checks: tuple[Check, ...]

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Proof":
        return cls(fields["subject"], tuple(map(Check.from_dict, fields["checks"])))

    def to_dict(self) -> dict[str, Any]:
        return {"subject": self.subject, "checks": [check.to_dict() for check in self.checks]}

    @property
    def passed(self) -> bool:
        # A proof without a check proves nothing.
        return bool(self.checks) and all(check.passed for check in self.checks)
