"""Which candidate to serve: the front of accuracy and throughput, the pick, and the refusals."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from converters.optimize.accuracy import Accuracy
from converters.optimize.benchmark_process import Cell, Times
from converters.optimize.candidates import BATCH_DEPENDENT, ORIGINAL, Candidate, promise

# Throughput in one number: the batcher merges a few requests, and an instance has one thread
# (instance_group and intra_op_thread_count of our configs).
HEADLINE = Cell(rows=8, threads=1)
# Candidates whose throughput differs by less are equally fast: the closer one is picked.
NOISE = 0.03
# One pass on a busy machine may show a candidate as this much slower than it is.
ONE_PASS_NOISE = 0.15


@dataclass(frozen=True)
class Row:
    """All measurements of one candidate, by the name of the cell: ``times`` are medians over the
    passes, ``ratios`` medians of the throughput relative to the original's in the same pass.

    ``reason`` says what could not be measured, "" if all was; ``engine`` is the graph's file.
    """

    candidate: Candidate
    accuracy: Accuracy | None = None
    times: dict[str, Times] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    passes: int = 0
    size_mb: float = 0.0
    memory_mb: float = 0.0
    reason: str = ""
    engine: Path | None = None

    @property
    def throughput(self) -> float:
        """Rows/s of the headline cell; 0 if it was not measured."""
        times = self.times.get(HEADLINE.name)
        return times.rows_s if times else 0.0

    @property
    def measured(self) -> bool:
        return self.accuracy is not None and self.accuracy.proved and self.throughput > 0

    @property
    def exactness(self) -> float:
        """The accuracy that the front uses: the mean cosine with the original."""
        return self.accuracy.closeness.mean_cosine if self.accuracy else 0.0


@dataclass(frozen=True)
class Allowed:
    """What the user permits and requires, in addition to the tolerances."""

    batch_dependent: bool = False
    least_cosine: float = 0.0
    least_agreement: float = 0.0


def front(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other beats in both throughput and exactness, fastest first. The original
    is not a candidate: it is exact by definition."""
    best: list[Row] = []
    measured = [row for row in rows if row.measured and row.candidate.precision != ORIGINAL]
    for row in sorted(measured, key=lambda row: (-row.throughput, -row.exactness)):
        if not best or row.exactness > best[-1].exactness:
            best.append(row)
    return best


def refusals(row: Row, allowed: Allowed) -> list[str]:
    """Why this row cannot be picked, however fast it is; empty if it can."""
    return list(_refusals(row, allowed))


def _refusals(row: Row, allowed: Allowed) -> Iterator[str]:
    candidate, accuracy = row.candidate, row.accuracy
    if candidate.precision == ORIGINAL:
        yield "the original itself, which the others are measured against"
        return
    if row.reason:
        yield row.reason
    if accuracy is None or not accuracy.proved:
        return
    if candidate.level != "all":
        yield "a graph optimisation level, not a candidate of its own"
    if not (accuracy.invariant or allowed.batch_dependent):
        hint = " (--allow-batch-dependent)" if candidate.precision in BATCH_DEPENDENT else ""
        yield f"{accuracy.grade}{hint}"
    if accuracy.failed:
        more = f", and {len(accuracy.failed) - 1} more" if len(accuracy.failed) > 1 else ""
        yield f"outside its tolerance: {accuracy.failed[0]}{more}"
    closeness = accuracy.closeness
    if closeness.cosine < allowed.least_cosine:
        yield f"lowest cosine {closeness.cosine:.4f}, below the required {allowed.least_cosine:g}"
    if closeness.agreement < allowed.least_agreement:
        yield f"agreement {closeness.agreement:.3f}, below the required {allowed.least_agreement:g}"


def pick(rows: Sequence[Row], allowed: Allowed) -> Row | None:
    """The fastest candidate that is not refused; of those as fast, the closest to the original."""
    eligible = [row for row in rows if row.measured and not refusals(row, allowed)]
    if not eligible:
        return None
    fastest = max(row.throughput for row in eligible)
    as_fast = [row for row in eligible if row.throughput >= (1 - NOISE) * fastest]
    return max(as_fast, key=lambda row: (row.exactness, row.throughput))


def next_to_prove(rows: Sequence[Row], allowed: Allowed) -> Row | None:
    """The fastest row that is timed but not proved, and whose proof could change the pick (of
    those that may be as fast, the one that usually is); None once the pick is certain. What would
    be refused whatever its proof says is not proved for it."""
    chosen = pick(rows, allowed)
    threshold = (1 - ONE_PASS_NOISE) * chosen.throughput if chosen else 0.0
    contenders = [
        row
        for row in rows
        if row.accuracy is not None
        and not row.accuracy.proved
        and row.throughput > threshold
        and row.candidate.level == "all"
        and (allowed.batch_dependent or row.candidate.precision not in BATCH_DEPENDENT)
    ]
    fastest = max((row.throughput for row in contenders), default=0.0)
    near = [row for row in contenders if row.throughput >= (1 - ONE_PASS_NOISE) * fastest]
    return min(near, key=lambda row: promise(row.candidate.precision), default=None)


def refused_faster(
    rows: Sequence[Row], chosen: Row | None, allowed: Allowed
) -> list[tuple[Row, str]]:
    """Every candidate that is faster than the pick, and why it was not picked."""
    threshold = chosen.throughput if chosen else 0.0
    refused = []
    for row in sorted(rows, key=lambda row: -row.throughput):
        if row.candidate.precision == ORIGINAL or row is chosen or row.throughput < threshold:
            continue
        if not row.measured:
            continue
        reasons = refusals(row, allowed) or [
            f"not more than {NOISE:.0%} faster, and further from the original"
        ]
        refused.append((row, "; ".join(reasons)))
    return refused
