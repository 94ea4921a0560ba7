"""What a proof's samples reached of a model, in lines for people (``Task.exercised``)."""

from collections.abc import Iterator, Sequence

import numpy as np

from converters.closeness import decided, spread_of
from converters.self_test import is_constant
from converters.tolerance import Tolerance, clear_margin

SHOWN = 12


def spread_lines(what: str, answers: np.ndarray, allowed: Tolerance) -> Iterator[str]:
    """How far the original's answers [n, ...] lie apart, and what that makes of the limits."""
    if answers.dtype.kind != "f" or not answers.size:
        return
    if is_constant(answers):
        yield (
            f"{what}: CONSTANT: the original gives the same for every sample, so that nothing "
            "shows whether it is followed. Give samples that it tells apart (--samples)"
        )
        return
    spread, shares = spread_of(answers), allowed.shares
    moving = spread.size[~spread.constant]
    yield (
        f"{what}: the original's answers lie {np.median(moving):.3g} apart (a typical element); "
        f"of that {shares.lost:g} may be error in all, and {shares.largest:g} in one number"
    )
    if spread.constant.any():
        yield f"{what}: {int(spread.constant.sum())} of {spread.constant.size} elements never move"


def label_lines(scores: np.ndarray, labels: Sequence[str], allowed: Tolerance) -> Iterator[str]:
    """Which labels were likeliest for scores [n, labels], and how many samples had a clear one."""
    clear = decided(scores, clear_margin(allowed))
    yield f"{int(clear.sum())} of {len(scores)} samples have a clear likeliest label"
    given = np.bincount(scores.argmax(axis=1), minlength=len(labels))
    never = [str(label) for label, count in zip(labels, given, strict=True) if not count]
    yield f"{len(labels) - len(never)} of {len(labels)} labels were the likeliest of a sample"
    if never:
        more = f" and {len(never) - SHOWN} more" if len(never) > SHOWN else ""
        yield f"NOT REACHED: never the likeliest: {', '.join(never[:SHOWN])}{more}"


def rows_lines(what: str, read: np.ndarray, rows: int) -> Iterator[str]:
    """How many of a table's rows the ids ``read``."""
    seen = len(np.unique(read[(read >= 0) & (read < rows)]))
    yield f"{what}: {seen} of {rows} rows of its table were read"
    if seen < rows:
        yield f"NOT REACHED: {rows - seen} rows of the table of {what}"
