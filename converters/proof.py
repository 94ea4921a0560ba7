"""The record of a proof: checks, each with what was measured and what was allowed."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.errors import ProofFailed


@dataclass(frozen=True)
class Check:
    """One measurement. ``passed`` is measured against ``limit``; ``worst`` names the sample."""

    name: str
    measured: float
    limit: float
    passed: bool
    worst: str = ""

    def line(self) -> str:
        relation = "<=" if self.passed == (self.measured <= self.limit) else ">="
        verdict = "ok  " if self.passed else "FAIL"
        where = f"  worst: {self.worst}" if self.worst and not self.passed else ""
        return (
            f"{verdict} {self.name}: {self.measured:.3g} (must be {relation} {self.limit}){where}"
        )


def at_most(name: str, measured: float, limit: float, worst: str = "") -> Check:
    # A NaN compares false, and so it fails.
    return Check(name, float(measured), limit, bool(measured <= limit), worst)


def at_least(name: str, measured: float, limit: float, worst: str = "") -> Check:
    return Check(name, float(measured), limit, bool(measured >= limit), worst)


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
    """All checks of one conversion."""

    subject: str
    samples: int
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def require(self) -> None:
        """ProofFailed lists every check that failed, with the sample and both values."""
        failed = [check.line() for check in self.checks if not check.passed]
        if failed:
            raise ProofFailed(
                f"{self.subject} does not give the original's answers; nothing was published:\n  "
                + "\n  ".join(failed)
            )

    def to_json(self) -> str:
        record: dict[str, Any] = {"passed": self.passed, **asdict(self)}
        return json.dumps(record, indent=2, ensure_ascii=False) + "\n"

    def save(self, path: Path) -> None:
        path.write_text(self.to_json(), encoding="utf-8")
