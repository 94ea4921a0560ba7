"""How sure a measured percentile is: the exact binomial rule of MLPerf's early stopping.

A limit "p99 at most 50 ms" says that at most 1 in 100 requests *misses* it: is slower, or fails. Of
a finite number of requests a few more or fewer miss it by chance. So a line

- passes, if so few misses would be improbable of a server that only just misses the limit;
- fails, if so many would be improbable of a server that only just holds it;
- is undecided in between, and says how many more requests would decide it.

>>> requests_needed(0, 0.99), requests_needed(1, 0.99), requests_needed(100, 0.99)
(459, 662, 12571)
"""

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache

from scipy.special import betainc

CONFIDENCE = 0.99
# More requests than anybody waits for: a line that would need them says so instead.
MOST_REQUESTS = 10_000_000


class Outcome(StrEnum):
    PASS = "pass"  # noqa: S105 - a verdict
    FAIL = "fail"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Verdict:
    """``more`` is how many more requests decide an undecided line if they miss the limit as often
    as those so far; None if no number would: it misses it about as often as it may. ``sent`` is of
    how many requests the ``requests`` are, and ``sent_misses`` how many of them missed it, where
    they do not count as independent; else None."""

    outcome: Outcome
    requests: int
    misses: int
    percentile: float
    confidence: float
    more: int | None = None
    sent: int | None = None
    sent_misses: int | None = None

    def of_dependent(self, sent: int, sent_misses: int) -> "Verdict":
        """The same of so many requests that were sent, of which this one's are worth fewer: as many
        more have to be sent as they are worth less."""
        if sent == self.requests:
            return self
        more = None if self.more is None else math.ceil(self.more * sent / self.requests)
        return replace(self, more=more, sent=sent, sent_misses=sent_misses)

    @property
    def why(self) -> str:
        """In words: how many requests missed the limit, and how many more would decide it."""
        counted = f"{self.misses} of {self.requests} missed it"
        if self.sent is not None:
            counted = (
                f"{self.sent_misses} of {self.sent} missed it, and count as {self.misses} of "
                f"{self.requests} independent ones"
            )
        if self.outcome is Outcome.UNDECIDED:
            return f"{counted}; {self.more} more needed" if self.more else f"{counted}; too close"
        return f"{counted} ({self.confidence:.0%} confidence)"


@lru_cache(4096)
def requests_needed(misses: int, percentile: float, confidence: float = CONFIDENCE) -> int:
    """The least number of requests of which ``misses`` may miss the limit of ``percentile`` (0.99
    for a p99) so that it holds with this ``confidence``.

    MLPerf's rule (loadgen/early_stopping.cc) with d = 0: misses + h, where h is least with
    I(percentile; h, misses + 1) <= 1 - confidence.
    """
    low, high = 0, 1
    while not _is_enough(high, misses, percentile, confidence):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if _is_enough(middle, misses, percentile, confidence):
            high = middle
        else:
            low = middle
    return misses + high


def _is_enough(good: int, misses: int, percentile: float, confidence: float) -> bool:
    """Whether ``good`` answers beside ``misses`` are improbable if the limit only just holds."""
    return bool(betainc(good, misses + 1, percentile) <= 1 - confidence)


def verdict(
    requests: int,
    misses: int,
    percentile: float,
    confidence: float = CONFIDENCE,
    looks: int = 1,
) -> Verdict:
    """What ``misses`` of ``requests`` say of a limit on ``percentile``.

    ``looks`` is how often the same requests are looked at before somebody stops: each look may be
    wrong, so each must be surer. Raises ValueError for counts that cannot be.
    """
    if not 0 <= misses <= requests:
        raise ValueError(f"{misses} of {requests} requests cannot have missed a limit")
    if not 0 < percentile < 1:
        raise ValueError(f"a percentile is between 0 and 1, not {percentile}")
    look_confidence = 1 - (1 - confidence) / looks
    if requests and requests >= requests_needed(misses, percentile, look_confidence):
        return Verdict(Outcome.PASS, requests, misses, percentile, confidence)
    # At least so many misses, if the limit only just held: improbable?
    if misses and betainc(misses, requests - misses + 1, 1 - percentile) <= 1 - look_confidence:
        return Verdict(Outcome.FAIL, requests, misses, percentile, confidence)
    more = _more(requests, misses, percentile, look_confidence)
    return Verdict(Outcome.UNDECIDED, requests, misses, percentile, confidence, more)


def _more(requests: int, misses: int, percentile: float, confidence: float) -> int | None:
    """How many more requests let it pass if they miss as often as those so far."""
    share = misses / requests if requests else 0.0
    if share >= 1 - percentile:
        return None
    low, high = requests, 2 * requests or 1
    while requests_needed(round(share * high), percentile, confidence) > high:
        if high > MOST_REQUESTS:
            return None
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if requests_needed(round(share * middle), percentile, confidence) > middle:
            low = middle
        else:
            high = middle
    return high - requests
