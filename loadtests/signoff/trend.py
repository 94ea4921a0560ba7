"""Whether something rises: a line through the means or medians of blocks.

Values that follow each other are not independent, and a line through all of them would claim to be
surer than it is.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

BLOCKS = 10


def slope(at: Sequence[float], values: Sequence[float], quantile: float) -> tuple[float, float]:
    """The slope of a line through the values of some blocks, and its margin at this quantile of
    Student's distribution."""
    fit = stats.linregress(at, values)
    # A perfectly flat line has no error that could be estimated.
    error = float(np.nan_to_num(fit.stderr))
    return float(fit.slope), float(stats.t.ppf(quantile, len(values) - 2)) * error
