"""Which integers a model takes, found by running it: an embedding, a one-hot or a table of
categories fails on an id that it has no row for, whatever the graph did to the ids before."""

import re
import time
from collections.abc import Callable, Mapping

import numpy as np

# Ids up to here are tried: a model that takes them all has no table behind that input.
LIMIT = 1 << 20
# The elements of a longer row are tried all at once, and share one limit.
COLUMNS = 64
# A model that takes longer for a larger number uses it as a count, and gets no larger ones.
PATIENCE_S, TOTAL_S = 1.0, 30.0
OUT_OF_RANGE = re.compile(
    r"out of (range|bounds|data bounds)|smaller than num_classes|within bounds|invalid index",
    re.IGNORECASE,
)
RunModel = Callable[[Mapping[str, np.ndarray]], object]


def id_counts(run: RunModel, row: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """For each integer input with a limit: how many ids there are, starting at 0, INT64 of the
    row's shape (0 for an element without a limit), or of shape [] for one limit for all.

    ``row`` is one that the model takes, each input [1, ...]; ``run`` runs the model on such a row,
    and raises when an id is out of range.
    """
    limits: dict[str, np.ndarray] = {}
    deadline = time.monotonic() + TOTAL_S
    for name, values in row.items():
        if values.dtype.kind not in "iu" or not values.size or values.size != values[0].size:
            continue
        per_element = values.size <= COLUMNS
        positions = (
            [(slice(None), *index) for index in np.ndindex(values.shape[1:])]
            if per_element
            else [...]
        )
        counts = [_count(run, row, name, position, deadline) for position in positions]
        if any(counts):
            shape = values.shape[1:] if per_element else ()
            limits[name] = np.array(counts, dtype=np.int64).reshape(shape)
    return limits


def _count(
    run: RunModel, row: Mapping[str, np.ndarray], name: str, position: object, deadline: float
) -> int:
    """The first number that the model refuses at this position; 0 if there is none."""

    def takes(number: int) -> bool | None:
        """None when that is unknown: the model takes too long, or fails for another reason."""
        values = row[name].copy()
        values[position] = number
        started = time.monotonic()
        try:
            run({**row, name: values})
        except Exception as error:  # frameworks' errors share no base class
            return False if OUT_OF_RANGE.search(str(error)) else None
        ended = time.monotonic()
        return None if ended - started > PATIENCE_S or ended > deadline else True

    low, high = 0, 1
    limit = min(LIMIT, int(np.iinfo(row[name].dtype).max))
    if not takes(0):
        return 0
    while (is_taken := takes(high)) is True:
        low, high = high, 2 * high
        if high > limit:
            return 0
    if is_taken is None:
        return 0
    while high - low > 1:
        middle = (low + high) // 2
        is_taken = takes(middle)
        if is_taken is None:
            return 0
        low, high = (middle, high) if is_taken else (low, middle)
    return high
