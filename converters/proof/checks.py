"""A proof consists of checks, each with what was measured and what is allowed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Check:
    """One measurement. ``passed``: whether it is within ``limit``; ``worst`` names the sample."""

    name: str
    measured: float
    limit: float
    passed: bool
    worst: str = ""
    least: bool = False  # ``limit`` is the minimum, not the maximum

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
        """In JSON types: null for NaN and infinity, which JSON does not have."""
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
    # NaN compares false, and therefore fails.
    return Check(name, float(measured), limit, bool(measured <= limit), worst)


def at_least(name: str, measured: float, limit: float, worst: str = "") -> Check:
    return Check(name, float(measured), limit, bool(measured >= limit), worst, least=True)


def worst_difference(
    name: str, actual: np.ndarray, expected: np.ndarray, limit: float, labels: Sequence[str]
) -> Check:
    """The largest absolute difference of two arrays [n, ...], and where it is."""
    if actual.shape != expected.shape:
        return Check(
            name, float("nan"), limit, False, f"shape {actual.shape}, not {expected.shape}"
        )
    if not np.isfinite(actual).all():
        row = int(np.argwhere(~np.isfinite(actual))[0][0])
        return Check(name, float("nan"), limit, False, f"{labels[row]!r} is not finite")
    gaps = np.abs(actual.astype(np.float64) - expected).reshape(len(actual), -1)
    row, column = map(int, np.unravel_index(int(gaps.argmax()), gaps.shape))
    value, original = (rows.reshape(gaps.shape)[row, column] for rows in (actual, expected))
    worst = f"{labels[row][:60]!r} element {column}: {value:.6g}, original {original:.6g}"
    return at_most(name, float(gaps.max()), limit, worst)


@dataclass(frozen=True)
class Proof:
    """All checks of one subject: the graph, or the pipeline through Triton. ``note`` says in one
    line what was not checked, and why."""

    subject: str
    checks: tuple[Check, ...]
    note: str = ""

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Proof":
        checks = tuple(map(Check.from_dict, fields["checks"]))
        return cls(fields["subject"], checks, fields.get("note", ""))

    def to_dict(self) -> dict[str, Any]:
        checks = [check.to_dict() for check in self.checks]
        return {"subject": self.subject, "checks": checks, "note": self.note}

    @property
    def passed(self) -> bool:
        # A proof without a check proves nothing.
        return bool(self.checks) and all(check.passed for check in self.checks)
