"""When a warm-up is over: from the measurements, not after a fixed time."""

from collections.abc import Sequence

import numpy as np

BATCH = 5


def steady_from(latencies: Sequence[float]) -> int:
    """The index from which latencies, in the order in which the requests were sent, are steady.

    The rule MSER-5 (White, 1997): leave out as many of the first as make the standard error of the
    mean of the rest least, in batches of five. If that is more than half of them, it has not become
    steady: then it is ``len(latencies)``.
    """
    values = np.asarray(latencies, float)
    batches = len(values) // BATCH
    if batches < 4:
        return 0 if batches == 0 else len(values)
    # Of the logarithms: a single slow answer must not look like a change.
    means = np.log(np.maximum(values[: batches * BATCH], 1e-9)).reshape(batches, BATCH).mean(axis=1)
    left = np.arange(batches, 0, -1)
    sums, squares = means[::-1].cumsum()[::-1], (means**2)[::-1].cumsum()[::-1]
    errors = (squares - sums**2 / left) / left**2
    considered = errors[: batches - 2]
    first = int(np.argmin(considered))
    return first * BATCH if first <= batches // 2 else len(values)
