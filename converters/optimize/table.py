"""The findings as text for a terminal."""

from collections.abc import Iterator, Sequence

from converters.optimize.benchmark_process import ROWS, THREADS, Cell
from converters.optimize.candidates import ORIGINAL
from converters.optimize.findings import Findings
from converters.optimize.pareto import HEADLINE, Row

NOTHING = "-"


def lines(findings: Findings) -> list[str]:
    """The table, the pick, and why each faster candidate was refused."""
    return list(_lines(findings))


def _lines(findings: Findings) -> Iterator[str]:
    yield f"rows/s (and x {findings.against}) by rows per batch (r) and threads (t):"
    yield from _columns(_speeds(findings))
    yield ""
    yield f"one row, one thread; accuracy against the original over {findings.samples} samples:"
    yield from _columns(_costs(findings))
    yield ""
    yield f"* on the front of accuracy and throughput ({HEADLINE.rows} rows, one thread)"
    yield from _verdict(findings)


def _verdict(findings: Findings) -> Iterator[str]:
    chosen = findings.chosen
    if chosen is None:
        yield "pick: none: no measured candidate is within its tolerance and batch-independent"
    else:
        yield f"pick: {chosen.candidate.name}: {_why(chosen, findings)}"
    measured = sum(row.measured for row in findings.candidates)
    if measured < len(findings.candidates):
        total = len(findings.candidates)
        yield f"  chosen from the {measured} of {total} candidates that were measured"
    for row, reason in findings.refused:
        yield f"  {row.candidate.name} is faster, but refused: {reason}"
    yield from _left_out(findings)
    if findings.level_hint():
        yield f"  {findings.level_hint()}"


def _left_out(findings: Findings) -> Iterator[str]:
    """What could not be measured, grouped by reason."""
    names: dict[str, list[str]] = {}
    for row in findings.left_out:
        names.setdefault(row.reason, []).append(row.candidate.name)
    for reason, group in names.items():
        yield f"  {', '.join(group)}: {reason}"


def _why(chosen: Row, findings: Findings) -> str:
    ratio = chosen.ratios.get(HEADLINE.name, float("nan"))
    return (
        f"the fastest within its tolerance whose answers do not depend on the batch "
        f"({ratio:.2f} x {findings.against} at {HEADLINE.rows} rows)"
        if not findings.allowed.batch_dependent
        else f"the fastest within its tolerance ({ratio:.2f} x {findings.against})"
    )


def _speeds(findings: Findings) -> Iterator[list[str]]:
    cells = [Cell(rows, threads) for threads in THREADS for rows in ROWS]
    yield ["candidate", *(f"{cell.rows}r {cell.threads}t" for cell in cells)]
    for row in _sorted_rows(findings):
        yield [_label(row, findings), *(_speed(row, cell) for cell in cells)]


def _speed(row: Row, cell: Cell) -> str:
    if cell.name not in row.times:
        return NOTHING
    return f"{row.times[cell.name].rows_s:.4g} ({row.ratios[cell.name]:.2f})"


def _costs(findings: Findings) -> Iterator[list[str]]:
    yield ["candidate", "p50 ms", "p95 ms", "MB", "memory", "cosine", "mean", "agree", "batch"]
    for row in _sorted_rows(findings):
        times = row.times.get(Cell(1, 1).name)
        latency = [f"{times.p50_ms:.2f}", f"{times.p95_ms:.2f}"] if times else [NOTHING] * 2
        size = f"{row.size_mb:.1f}" if row.size_mb else NOTHING
        memory = f"{row.memory_mb:.0f}" if row.memory_mb else NOTHING
        yield [_label(row, findings), *latency, size, memory, *_accuracy(row)]


def _accuracy(row: Row) -> list[str]:
    if row.accuracy is None:
        return [NOTHING] * 4
    closeness = row.accuracy.closeness
    grade = "same" if row.accuracy.invariant else "DEPENDS"
    if not row.accuracy.proved:
        grade = "?"
    return [
        f"{closeness.cosine:.4f}",
        f"{closeness.mean_cosine:.5f}",
        f"{closeness.agreement:.3f}",
        grade,
    ]


def _sorted_rows(findings: Findings) -> list[Row]:
    """The original first, then the candidates, fastest first."""
    original = [row for row in findings.rows if row.candidate.precision == ORIGINAL]
    return [*original, *findings.candidates]


def _label(row: Row, findings: Findings) -> str:
    mark = "*" if row in findings.front else " "
    arrow = " <- pick" if row is findings.chosen else ""
    return f"{mark} {row.candidate.name}{arrow}"


def _columns(rows: Iterator[list[str]]) -> Iterator[str]:
    """Aligned columns: names to the left, numbers to the right."""
    table: Sequence[list[str]] = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for first, *others in table:
        cells = (text.rjust(width) for text, width in zip(others, widths[1:], strict=True))
        yield f"  {first.ljust(widths[0])}  {'  '.join(cells)}".rstrip()
