"""Which parts of a model the proof's samples reached, in readable lines (``Task.exercised``)."""

from collections.abc import Iterator, Sequence

import numpy as np

from converters.proof.closeness import decided, spread_of
from converters.proof.self_test import is_constant
from converters.proof.tolerance import Tolerance, clear_margin

SHOWN = 12


def spread_lines(what: str, outputs: np.ndarray, allowed: Tolerance) -> Iterator[str]:
    """How much the original's answers [n, ...] vary, and how much of that may be error."""
    if outputs.dtype.kind != "f" or not outputs.size:
        return
    if is_constant(outputs):
        yield (
            f"{what}: CONSTANT: the original gives the same answer for every sample, so the proof "
            "cannot tell whether the graph follows it. Give samples with different answers "
            "(--samples)"
        )
        return
    spread, shares = spread_of(outputs), allowed.shares
    moving = spread.size[~spread.constant]
    yield (
        f"{what}: the original's answers vary by {np.median(moving):.3g} (a typical element); "
        f"of that, {shares.lost:g} may be error overall, and {shares.largest:g} in one number"
    )
    if spread.constant.any():
        yield f"{what}: {int(spread.constant.sum())} of {spread.constant.size} elements never move"


def label_lines(scores: np.ndarray, labels: Sequence[str], allowed: Tolerance) -> Iterator[str]:
    """Which labels are the likeliest for scores [n, labels], and for how many samples clearly."""
    clear = decided(scores, clear_margin(allowed))
    yield f"{int(clear.sum())} of {len(scores)} samples have a clear likeliest label"
    counts = np.bincount(scores.argmax(axis=1), minlength=len(labels))
    never = [str(label) for label, count in zip(labels, counts, strict=True) if not count]
    yield f"{len(labels) - len(never)} of {len(labels)} labels were the likeliest of a sample"
    if never:
        more = f" and {len(never) - SHOWN} more" if len(never) > SHOWN else ""
        yield f"NOT REACHED: never the likeliest: {', '.join(never[:SHOWN])}{more}"


def rows_lines(what: str, read: np.ndarray, rows: int) -> Iterator[str]:
    """How many of a table's ``rows`` the ids ``read`` reach."""
    seen = len(np.unique(read[(read >= 0) & (read < rows)]))
    yield f"{what}: {seen} of {rows} rows of its table were read"
    if seen < rows:
        yield f"NOT REACHED: {rows - seen} rows of the table of {what}"
