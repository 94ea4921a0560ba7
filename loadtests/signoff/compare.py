"""What moved between two reports: ratios with their intervals, and whether something got worse."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.signoff.confidence import CONFIDENCE

BLOCK_S = 10  # of the target's run: what is compared, pair by pair
FEWEST_BLOCKS = 5
RESAMPLED = 2000
WORSE = 1.05  # a ratio whose whole interval is above this is a regression
_LATENCIES = (("p50 at the target", "p50_ms"), ("slowest of a second", "worst_ms"))


class NotComparable(ValueError):
    """The two reports say nothing of each other: the message says why."""


@dataclass(frozen=True)
class Change:
    """The second report's value over the first's; above 1 is worse. ``interval`` is at 99 %
    confidence, None where there is only one value of each."""

    pipeline: str
    name: str
    ratio: float
    interval: tuple[float, float] | None = None

    @property
    def is_regression(self) -> bool:
        return self.interval is not None and self.interval[0] > WORSE

    def line(self) -> str:
        low, high = self.interval or (self.ratio, self.ratio)
        sure = f" ({low:.3f} to {high:.3f})" if self.interval else " (no interval)"
        worse = "  REGRESSION" if self.is_regression else ""
        return f"{self.pipeline}: {self.name}: x {self.ratio:.3f}{sure}{worse}"


def read_report(path: Path) -> Mapping[str, Any]:
    """A ``report.json``, or the one in a folder. Raises NotComparable."""
    file = path / "report.json" if path.is_dir() else path
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        return {pipeline["name"]: pipeline for pipeline in report["pipelines"]}
    except OSError as error:
        raise NotComparable(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise NotComparable(f"{file} is no report of tidegate signoff") from None


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Of each pipeline that both have, and that both measured at the same target rate."""
    common = [name for name in before if name in after]
    if not common:
        raise NotComparable(
            f"no pipeline is in both: {', '.join(before) or 'none'}, {', '.join(after) or 'none'}"
        )
    return [change for name in common for change in _changes(name, before[name], after[name])]


def _changes(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    if before["rate_per_s"] != after["rate_per_s"]:
        raise NotComparable(
            f"{name} was held at {before['rate_per_s']:g}/s and at {after['rate_per_s']:g}/s: "
            "sign off both at one rate"
        )
    found = []
    for title, key in _LATENCIES:
        pairs = list(zip(_blocks(before, key), _blocks(after, key), strict=False))
        if len(pairs) < FEWEST_BLOCKS:
            raise NotComparable(
                f"{name} was held for less than {FEWEST_BLOCKS * BLOCK_S} s in one of them: "
                "sign off with a soak"
            )
        found.append(Change(name, title, *_ratio(pairs)))
    held = [(report["knee"] or {}).get("held_per_s") or 0.0 for report in (before, after)]
    if all(held):
        found.append(Change(name, "highest rate that holds (first over second)", held[0] / held[1]))
    return found


def _blocks(report: Mapping[str, Any], key: str) -> list[float]:
    """The mean of each ten seconds, in milliseconds."""
    rows = report["timeline"]
    blocks = [rows[at : at + BLOCK_S] for at in range(0, len(rows) - BLOCK_S + 1, BLOCK_S)]
    values = [[row[key] for row in block if row[key] is not None] for block in blocks]
    return [float(np.mean(block)) for block in values if block]


def _ratio(pairs: Sequence[tuple[float, float]]) -> tuple[float, tuple[float, float]]:
    """The geometric mean of the pairs' ratios, with a bootstrap interval."""
    logarithms = np.log([second / first for first, second in pairs])
    generator = np.random.default_rng(0)
    means = generator.choice(logarithms, (RESAMPLED, len(pairs))).mean(axis=1)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.exp(np.percentile(means, [tail, 100 - tail]))
    return float(np.exp(logarithms.mean())), (float(low), float(high))
