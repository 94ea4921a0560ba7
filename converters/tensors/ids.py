"""Which whole numbers a model takes, found by asking it: what an embedding, a one-hot or a table of
categories has no row for is refused, whatever was done to the ids before."""

import re
import time
from collections.abc import Callable, Mapping

import numpy as np

# Numbers up to here are tried: a model that takes them all has no table behind that input.
LIMIT = 1 << 20
# Of a row with more elements they are asked all at once, and have one limit.
COLUMNS = 64
# A model that takes longer for a larger number counts with it, and is not asked for more.
PATIENCE_S, IN_ALL_S = 1.0, 30.0
OUT_OF_RANGE = re.compile(
    r"out of (range|bounds|data bounds)|smaller than num_classes|within bounds|invalid index",
    re.IGNORECASE,
)
Ask = Callable[[Mapping[str, np.ndarray]], object]


def id_counts(ask: Ask, row: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """For each input of whole numbers that has a limit: how many there are from 0 on, INT64 of the
    row's shape (0 for an element without a limit), or of shape [] where there is one for all.

    ``row`` is one that the model takes, each input [1, ...]; ``ask`` answers to such a row, and
    raises when a number is out of range.
    """
    found: dict[str, np.ndarray] = {}
    deadline = time.monotonic() + IN_ALL_S
    for name, values in row.items():
        if values.dtype.kind not in "iu" or not values.size or values.size != values[0].size:
            continue
        few = values.size <= COLUMNS
        positions = (
            [(slice(None), *each) for each in np.ndindex(values.shape[1:])] if few else [...]
        )
        counts = [_count(ask, row, name, place, deadline) for place in positions]
        if any(counts):
            shape = values.shape[1:] if few else ()
            found[name] = np.array(counts, dtype=np.int64).reshape(shape)
    return found


def _count(
    ask: Ask, row: Mapping[str, np.ndarray], name: str, place: object, deadline: float
) -> int:
    """The first number that is refused at this place; 0 if none is."""

    def takes(number: int) -> bool | None:
        """None when nobody can say: it takes too long, or fails for another reason."""
        values = row[name].copy()
        values[place] = number
        started = time.monotonic()
        try:
            ask({**row, name: values})
        except Exception as error:  # frameworks' errors share no base class
            return False if OUT_OF_RANGE.search(str(error)) else None
        ended = time.monotonic()
        return None if ended - started > PATIENCE_S or ended > deadline else True

    low, high = 0, 1
    most = min(LIMIT, int(np.iinfo(row[name].dtype).max))
    if not takes(0):
        return 0
    while (taken := takes(high)) is True:
        low, high = high, 2 * high
        if high > most:
            return 0
    if taken is None:
        return 0
    while high - low > 1:
        middle = (low + high) // 2
        taken = takes(middle)
        if taken is None:
            return 0
        low, high = (middle, high) if taken else (low, middle)
    return high
