"""Accuracy against throughput, as PNG and SVG: the front a line, refused forms hollow."""

from pathlib import Path
from typing import Any

from converters.errors import ConversionError
from converters.optimize.candidates import ORIGINAL
from converters.optimize.findings import Findings
from converters.optimize.pareto import HEADLINE, Row, refusals

CHART_FILES = ("optimize.png", "optimize.svg")
FIT, REFUSED, PICK = "#1f6f8b", "#9a9a9a", "#c8502e"
# An error of exactly nothing has no place on a logarithmic axis.
LEAST_ERROR = 1e-9


def points(found: Findings) -> list[tuple[Row, float, float]]:
    """Each measured form with its place: rows/s of the headline, and 1 - mean cosine."""
    return [
        (row, row.throughput, max(LEAST_ERROR, 1 - row.exactness))
        for row in found.forms
        if row.measured
    ]


def draw(found: Findings, folder: Path) -> list[Path]:
    """Write both files; ConversionError says how to get matplotlib where it is missing."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ConversionError(
            "the chart needs matplotlib: pip install 'tidegate[charts]'; the table and "
            "optimize.json are complete without it"
        ) from error
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    _plot(figure.subplots(), found)
    paths = [folder / name for name in CHART_FILES]
    # Without a date and with names by content: the same figures give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "tidegate", "svg.fonttype": "none"}):
        figure.savefig(paths[0], dpi=150)
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


def _plot(axes: Any, found: Findings) -> None:
    placed = points(found)
    for row, speed, error in placed:
        style = _style(row, found)
        axes.scatter([speed], [error], zorder=3, **style)
    _front(axes, found)
    _original(axes, found)
    # Exact is up, fast is right: the front runs along the upper right.
    axes.set_yscale("log")
    axes.invert_yaxis()
    axes.margins(x=0.2, y=0.15)
    axes.set_xlabel(f"rows/s ({HEADLINE.rows} rows a batch, {HEADLINE.threads} thread)")
    axes.set_ylabel("1 - mean cosine with the original (up is closer)")
    axes.set_title(f"{found.name}: accuracy against throughput on this machine")
    axes.grid(visible=True, which="major", alpha=0.25)
    _labels(axes, placed)
    _legend(axes)


def _style(row: Row, found: Findings) -> dict[str, Any]:
    if row is found.chosen:
        return {"s": 150, "marker": "*", "color": PICK}
    if refusals(row, found.allowed):
        return {"s": 55, "marker": "X", "facecolors": "white", "edgecolors": REFUSED}
    return {"s": 55, "marker": "o", "color": FIT}


def _front(axes: Any, found: Findings) -> None:
    rows = found.front
    if rows:
        xs = [row.throughput for row in rows]
        ys = [max(LEAST_ERROR, 1 - row.exactness) for row in rows]
        axes.plot(xs, ys, color=FIT, linewidth=1.2, alpha=0.7, zorder=2, gid="front")


def _original(axes: Any, found: Findings) -> None:
    for row in found.rows:
        if row.candidate.precision == ORIGINAL and row.throughput:
            axes.axvline(row.throughput, color="black", linestyle=":", linewidth=1)
            axes.annotate(
                found.against, (row.throughput, 0.02), xycoords=("data", "axes fraction"),
                xytext=(4, 0), textcoords="offset points", fontsize=8, rotation=90, va="bottom",
            )  # fmt: skip


def _labels(axes: Any, placed: list[tuple[Row, float, float]]) -> None:
    """Names beside the points; those that would overlap, one above the other."""
    if not placed:
        return
    wide = max(speed for _, speed, _ in placed) - min(speed for _, speed, _ in placed)
    written: list[tuple[float, float, int]] = []
    for row, speed, error in sorted(placed, key=lambda each: (each[2], each[1])):
        taken = {
            slot
            for x, y, slot in written
            if abs(speed - x) <= 0.2 * wide and 0.4 <= error / y <= 2.5
        }
        slot = next(each for each in range(len(placed)) if each not in taken)
        axes.annotate(
            row.candidate.name, (speed, error), xytext=(8, 7 - 12 * slot),
            textcoords="offset points", fontsize=9,
        )  # fmt: skip
        written.append((speed, error, slot))


def _legend(axes: Any) -> None:
    from matplotlib.lines import Line2D

    axes.legend(
        handles=[
            Line2D([], [], marker="*", color=PICK, linestyle="", markersize=12, label="pick"),
            Line2D([], [], marker="o", color=FIT, linestyle="", label="may be served"),
            Line2D([], [], marker="X", color=REFUSED, markerfacecolor="white", linestyle="",
                   label="refused"),
            Line2D([], [], color=FIT, label="front"),
        ],
        fontsize=8, loc="best",
    )  # fmt: skip
