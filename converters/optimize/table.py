"""The findings as a person reads them in a terminal."""

from collections.abc import Iterator, Sequence

from converters.optimize.candidates import ORIGINAL
from converters.optimize.clocks import ROWS, THREADS, Cell
from converters.optimize.findings import Findings
from converters.optimize.pareto import HEADLINE, Row

NOTHING = "-"


def lines(found: Findings) -> list[str]:
    """The table, the pick, and why each faster form was refused."""
    return list(_lines(found))


def _lines(found: Findings) -> Iterator[str]:
    yield f"rows/s (and x {found.against}, one thread, then two) by rows of a batch:"
    yield from _columns(_speeds(found))
    yield ""
    yield f"one row, one thread; accuracy against the original over {found.samples} samples:"
    yield from _columns(_costs(found))
    yield ""
    yield f"* on the front of accuracy and throughput ({HEADLINE.rows} rows, one thread)"
    yield from _verdict(found)


def _verdict(found: Findings) -> Iterator[str]:
    chosen = found.chosen
    if chosen is None:
        yield "pick: none: no form is measured, within its tolerance and independent of the batch"
    else:
        yield f"pick: {chosen.candidate.name}: {_why(chosen, found)}"
    measured = sum(row.measured for row in found.forms)
    if measured < len(found.forms):
        yield f"  chosen from the {measured} of {len(found.forms)} forms that were measured"
    for row, reason in found.refused:
        yield f"  {row.candidate.name} is faster, but refused: {reason}"
    yield from _left_out(found)
    if found.level_hint():
        yield f"  {found.level_hint()}"


def _left_out(found: Findings) -> Iterator[str]:
    """What could not be measured, together what has the same reason."""
    names: dict[str, list[str]] = {}
    for row in found.left_out:
        names.setdefault(row.why_not, []).append(row.candidate.name)
    for reason, alike in names.items():
        yield f"  {', '.join(alike)}: {reason}"


def _why(chosen: Row, found: Findings) -> str:
    ratio = chosen.ratios.get(HEADLINE.name, float("nan"))
    return (
        f"the fastest within its tolerance whose answers do not depend on the batch "
        f"({ratio:.2f} x {found.against} at {HEADLINE.rows} rows)"
        if not found.allowed.batch_dependent
        else f"the fastest within its tolerance ({ratio:.2f} x {found.against})"
    )


def _speeds(found: Findings) -> Iterator[list[str]]:
    cells = [Cell(rows, threads) for threads in THREADS for rows in ROWS]
    yield ["form", *(f"{cell.rows}r {cell.threads}t" for cell in cells)]
    for row in _shown(found):
        yield [_named(row, found), *(_speed(row, cell) for cell in cells)]


def _speed(row: Row, cell: Cell) -> str:
    if cell.name not in row.times:
        return NOTHING
    return f"{row.times[cell.name].rows_s:.4g} ({row.ratios[cell.name]:.2f})"


def _costs(found: Findings) -> Iterator[list[str]]:
    yield ["form", "p50 ms", "p95 ms", "MB", "memory", "cosine", "mean", "agree", "batch"]
    for row in _shown(found):
        times = row.times.get(Cell(1, 1).name)
        latency = [f"{times.p50_ms:.2f}", f"{times.p95_ms:.2f}"] if times else [NOTHING] * 2
        size = f"{row.size_mb:.1f}" if row.size_mb else NOTHING
        memory = f"{row.memory_mb:.0f}" if row.memory_mb else NOTHING
        yield [_named(row, found), *latency, size, memory, *_accuracy(row)]


def _accuracy(row: Row) -> list[str]:
    if row.accuracy is None:
        return [NOTHING] * 4
    near = row.accuracy.closeness
    grade = "same" if row.accuracy.invariant else "DEPENDS"
    return [f"{near.cosine:.4f}", f"{near.mean_cosine:.5f}", f"{near.agreement:.3f}", grade]


def _shown(found: Findings) -> list[Row]:
    """The original first, then the forms, fastest first."""
    original = [row for row in found.rows if row.candidate.precision == ORIGINAL]
    return [*original, *found.forms]


def _named(row: Row, found: Findings) -> str:
    mark = "*" if row in found.front else " "
    arrow = " <- pick" if row is found.chosen else ""
    return f"{mark} {row.candidate.name}{arrow}"


def _columns(rows: Iterator[list[str]]) -> Iterator[str]:
    """Aligned: names to the left, numbers to the right."""
    table: Sequence[list[str]] = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for first, *others in table:
        cells = (text.rjust(width) for text, width in zip(others, widths[1:], strict=True))
        yield f"  {first.ljust(widths[0])}  {'  '.join(cells)}".rstrip()
