"""Accuracy against throughput, as PNG and SVG: the front a line, refused candidates hollow."""

from pathlib import Path
from typing import Any

from converters.errors import ConversionError
from converters.optimize.candidates import ORIGINAL
from converters.optimize.findings import Findings
from converters.optimize.pareto import HEADLINE, Row, refusals

CHART_FILES = ("optimize.png", "optimize.svg")
FIT, REFUSED, PICK = "#1f6f8b", "#9a9a9a", "#c8502e"
# A logarithmic axis cannot show an error of exactly 0.
LEAST_ERROR = 1e-9


def points(findings: Findings) -> list[tuple[Row, float, float]]:
    """Each measured candidate with its coordinates: rows/s of the headline cell, and 1 - mean
    cosine."""
    return [
        (row, row.throughput, max(LEAST_ERROR, 1 - row.exactness))
        for row in findings.candidates
        if row.measured
    ]


def draw(findings: Findings, folder: Path) -> list[Path]:
    """Write both files; ConversionError says how to install matplotlib if it is missing."""
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
    _plot(figure.subplots(), findings)
    paths = [folder / name for name in CHART_FILES]
    # No date, and ids derived from content: the same figures give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "tidegate", "svg.fonttype": "none"}):
        figure.savefig(paths[0], dpi=150)
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


def _plot(axes: Any, findings: Findings) -> None:
    measured = points(findings)
    for row, speed, error in measured:
        style = _style(row, findings)
        axes.scatter([speed], [error], zorder=3, **style)
    _front(axes, findings)
    _original(axes, findings)
    # Exact is up, fast is right: the front is at the upper right.
    axes.set_yscale("log")
    axes.invert_yaxis()
    axes.margins(x=0.2, y=0.15)
    axes.set_xlabel(f"rows/s ({HEADLINE.rows} rows a batch, {HEADLINE.threads} thread)")
    axes.set_ylabel("1 - mean cosine with the original (up is closer)")
    axes.set_title(f"{findings.name}: accuracy against throughput on this machine")
    axes.grid(visible=True, which="major", alpha=0.25)
    _labels(axes, measured)
    _legend(axes)


def _style(row: Row, findings: Findings) -> dict[str, object]:
    if row is findings.chosen:
        return {"s": 150, "marker": "*", "color": PICK}
    if refusals(row, findings.allowed):
        return {"s": 55, "marker": "X", "facecolors": "white", "edgecolors": REFUSED}
    return {"s": 55, "marker": "o", "color": FIT}


def _front(axes: Any, findings: Findings) -> None:
    rows = findings.front
    if rows:
        xs = [row.throughput for row in rows]
        ys = [max(LEAST_ERROR, 1 - row.exactness) for row in rows]
        axes.plot(xs, ys, color=FIT, linewidth=1.2, alpha=0.7, zorder=2, gid="front")


def _original(axes: Any, findings: Findings) -> None:
    for row in findings.rows:
        if row.candidate.precision == ORIGINAL and row.throughput:
            axes.axvline(row.throughput, color="black", linestyle=":", linewidth=1)
            axes.annotate(
                findings.against, (row.throughput, 0.02), xycoords=("data", "axes fraction"),
                xytext=(4, 0), textcoords="offset points", fontsize=8, rotation=90, va="bottom",
            )  # fmt: skip


def _labels(axes: Any, measured: list[tuple[Row, float, float]]) -> None:
    """Write the names beside the points, and stack those that would overlap."""
    if not measured:
        return
    speeds = [speed for _, speed, _ in measured]
    width = max(speeds) - min(speeds)
    labels: list[tuple[float, float, int]] = []
    for row, speed, error in sorted(measured, key=lambda point: (point[2], point[1])):
        taken = {
            slot
            for x, y, slot in labels
            if abs(speed - x) <= 0.2 * width and 0.4 <= error / y <= 2.5
        }
        slot = next(slot for slot in range(len(measured)) if slot not in taken)
        axes.annotate(
            row.candidate.name, (speed, error), xytext=(8, 7 - 12 * slot),
            textcoords="offset points", fontsize=9,
        )  # fmt: skip
        labels.append((speed, error, slot))


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
