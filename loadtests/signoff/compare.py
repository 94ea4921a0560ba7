"""What moved between two reports, and whether something got worse by more than chance.

The intervals are of what differs within a run. How much two runs of the same server differ, because
of the machine, they do not know: compare runs of one machine, one after the other.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

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
    """What a value was and is. ``is_regression`` only where that is beyond chance."""

    pipeline: str
    name: str
    before: str
    after: str
    sure: str  # what says that it is not chance: an interval, or a test
    is_regression: bool

    def line(self) -> str:
        worse = "  REGRESSION" if self.is_regression else ""
        sure = f" ({self.sure})" if self.sure else ""
        return f"{self.pipeline}: {self.name}: {self.before} -> {self.after}{sure}{worse}"


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
    comparisons = [_verdict(name, before, after)]
    for title, key in _LATENCIES:
        pairs = list(zip(_blocks(before, key), _blocks(after, key), strict=False))
        if len(pairs) >= FEWEST_BLOCKS:
            comparisons.append(_latency(name, title, pairs))
    comparisons += [
        _share(name, line["name"], line, other)
        for line in before["objectives"]
        for other in after["objectives"]
        if line["name"] == other["name"] and line["requests"] and other["requests"]
    ]
    if before["knee"] and after["knee"]:
        comparisons.append(_knee(name, before["knee"], after["knee"]))
    return comparisons


def _verdict(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Change:
    was, now = before["verdict"], after["verdict"]
    order = ("pass", "undecided", "fail")
    is_worse = order.index(now) > order.index(was) and now == "fail"
    return Change(name, "verdict", was, now, "", is_worse)


def _latency(name: str, title: str, pairs: Sequence[tuple[float, float]]) -> Change:
    ratio, (low, high) = _ratio(pairs)
    was, now = (float(np.mean(values)) for values in zip(*pairs, strict=True))
    sure = f"x {ratio:.3f}, {low:.3f} to {high:.3f}"
    return Change(name, title, f"{was:.4g} ms", f"{now:.4g} ms", sure, low > WORSE)


def _share(name: str, title: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> Change:
    """The share of requests that miss an objective, by Fisher's exact test."""
    table = [[line["misses"], line["requests"] - line["misses"]] for line in (was, now)]
    chance = float(stats.fisher_exact(table, alternative="less").pvalue)
    shares = [line["misses"] / line["requests"] for line in (was, now)]
    # A share that no one would notice is no regression, however many requests show it.
    is_worse = chance < 1 - CONFIDENCE and shares[1] > WORSE * shares[0] + 0.001
    title = f"requests that miss {title}"
    was_share, now_share = (f"{share:.3%}" for share in shares)
    return Change(name, title, was_share, now_share, f"p {chance:.2g}", is_worse)


def _knee(name: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> Change:
    """A regression if the rate that missed now is not above the one that held before."""
    missed = now["missed_per_s"]
    is_worse = missed is not None and missed <= was["held_per_s"]
    return Change(
        name,
        "highest rate that holds",
        f"{was['held_per_s']:.4g}/s",
        f"{now['held_per_s']:.4g}/s",
        f"missed at {missed:.4g}/s" if missed else "",
        is_worse,
    )


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
