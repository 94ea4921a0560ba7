"""What one replica made of the requests for one model lately, and when that is so much worse than
what the others made of theirs that it gets none for a while.

A replica is an *outlier* only by comparison: a request that fails everywhere (anybody can send one)
makes no replica one. The comparison is an experiment: after a model's failure, half of its requests
go to a replica drawn by lot, and only these are compared. The others follow the load, or a stream's
connection, or a sequence: requests that fail at once all follow the replica that is least busy, and
would make it look worse than it is. For the same reason all take part alike, or nothing is
compared: one that got its share only lately, when more requests failed everywhere, would look worse
than those that had been asked before.

It is ejected for one model, and for no other. When its time is over it gets one request at a time;
after ``TRIALS`` good answers it is back, and its share grows over ``SLOW_START_S``. A failure
ejects it again, for twice as long if the model fails nowhere else.
"""

import math

WINDOW_S = 10.0  # after this long a request counts for a third of its weight
LEAST_REQUESTS = 5.0  # on either side, before anything is compared
# How improbable the difference must be if both fail alike: 1 in 10,000, as a logarithm. 7 of 7 are,
# where the others failed none of 7, and so are 14 of 200, where they failed none of 200.
LIMIT = math.log(1e4)
EJECTED_S, LONGEST_S = 5.0, 60.0
SUSPECT_S = 20.0  # after a model's last failure, for so long requests are drawn by lot
LOT_SHARE = 0.5  # of its requests; the others go where there is least to do
TRIALS = 3
TRIAL_S = 5.0  # a trial that takes longer no longer keeps the next one waiting
FAILS_ELSEWHERE = 0.1  # of the others' requests: then a failed trial says little
REFUSED_S = 5.0  # after this long a refusal counts for a third of its weight
SLOW_START_S = 10.0
LEAST_WEIGHT = 0.1
# A failure counts as so many usual answers. Not as the deadline: anybody can make a request fail.
FAILURE_ANSWERS = 8.0
NEW_SHARE = 0.1  # of the newest answer in the average of their durations
# After a pause of so long and twice the average, the average says nothing more. A replica that has
# just started answers its first request slowly, and beside busy ones that would leave it idle.
PAUSE_S = 1.0


class Record:
    """What one replica made of the requests for one model. Times are in monotonic seconds.

    ``answers`` and ``failures`` are of requests drawn by lot; their weights decay with their age.
    """

    __slots__ = (
        "_answer_s",
        "_latency_at",
        "_latency_s",
        "_refusals",
        "_refused_at",
        "_trial_since",
        "_updated",
        "answers",
        "back_since",
        "ejected_until",
        "ejections",
        "failures",
        "trials",
        "trials_left",
    )

    def __init__(self) -> None:
        self.answers = self.failures = 0.0
        self._updated = 0.0
        self._refusals = self._refused_at = 0.0
        self._latency_s = self._latency_at = 0.0
        self._answer_s = 0.0  # the same average of good answers alone, however old
        self.ejections = 0  # in a row
        self.ejected_until = 0.0
        self.trials_left = 0  # good answers that are needed until it is back; 0: it is
        self.trials = 0  # trials under way
        self._trial_since = 0.0  # when the newest of them was sent
        self.back_since = -math.inf

    def answered(self, duration_s: float, now: float, *, by_lot: bool = False) -> None:
        duration_s = max(duration_s, 1e-6)
        if by_lot:
            self._decay(now)
            self.answers += 1
        self._observe(duration_s, now)
        self._answer_s = _moved(self._answer_s, duration_s)

    def failed(self, now: float, *, by_lot: bool = False) -> None:
        if by_lot:
            self._decay(now)
            self.failures += 1
        # Of good answers alone: failures one after the other must not multiply.
        if self._answer_s:
            self._observe(FAILURE_ANSWERS * self._answer_s, now)

    def refused(self, now: float) -> None:
        """It was full, or did not answer in time."""
        self._refusals, self._refused_at = self._refusals_left(now) + 1, now

    def refusals(self, now: float) -> int:
        """How many requests it refused, or did not answer in time, by what they weigh now."""
        return round(self._refusals_left(now)) if self._refusals else 0

    def forget_refusals(self) -> None:
        """The server was away and is back: what it refused on its way out says nothing now."""
        self._refusals = 0.0

    def _refusals_left(self, now: float) -> float:
        return self._refusals * math.exp((self._refused_at - now) / REFUSED_S)

    def _observe(self, duration_s: float, now: float) -> None:
        # The first one after a pause counts alone: what was measured before it says nothing now.
        self._latency_s = _moved(self.latency_s(now), duration_s)
        self._latency_at = now

    def _decay(self, now: float) -> None:
        factor = math.exp((self._updated - now) / WINDOW_S)
        self.answers *= factor
        self.failures *= factor
        self._updated = now

    def forget_counts(self) -> None:
        """A new comparison begins."""
        self.answers = self.failures = 0.0

    def counts(self, now: float) -> tuple[float, float]:
        """Answers and failures, by what they weigh now."""
        self._decay(now)
        return self.answers, self.failures

    def latency_s(self, now: float) -> float:
        """The moving (geometric) average of how long answers take; 0.0 if there was none lately."""
        lately_s = min(PAUSE_S + 2 * self._latency_s, WINDOW_S)
        return self._latency_s if now - self._latency_at < lately_s else 0.0

    def gets_none(self, now: float) -> bool:
        """Whether it gets no request now: it is ejected, or on trial with one under way."""
        is_tried = self.trials > 0 and now < self._trial_since + TRIAL_S
        return self.trials_left > 0 and (now < self.ejected_until or is_tried)

    def weight(self, now: float) -> float:
        """The part of its usual share that it gets: less than 1.0 for a while after it is back."""
        return slow_start(now - self.back_since)

    def eject(self, now: float, *, for_longer: bool = True) -> None:
        """``for_longer``: for twice as long as the last time."""
        if for_longer:
            self.ejections += 1
        self.trials_left = TRIALS
        self.ejected_until = now + min(EJECTED_S * 2 ** min(self.ejections - 1, 8), LONGEST_S)
        self.answers = self.failures = 0.0

    def trial_began(self, now: float) -> None:
        self.trials += 1
        self._trial_since = now

    def trial_passed(self, now: float) -> bool:
        """Count a good answer to a trial; whether it is back with that."""
        self.trials_left = max(0, self.trials_left - 1)
        if not self.trials_left:
            self.back_since = now
        return not self.trials_left

    def forgive(self, now: float) -> None:
        """It has been back for a while: the next ejection is as short as the first."""
        if self.ejections and not self.trials_left and now - self.back_since > LONGEST_S:
            self.ejections = 0


def _moved(average_s: float, newest_s: float) -> float:
    """A moving average with its newest value; ``average_s`` is 0.0 before the first."""
    # Of the logarithms: one answer that took thirty times as long is chance.
    return average_s * (newest_s / average_s) ** NEW_SHARE if average_s else newest_s


def slow_start(age_s: float) -> float:
    """The part of its usual share that a replica gets ``age_s`` after it came back."""
    return min(1.0, max(LEAST_WEIGHT, age_s / SLOW_START_S))


def is_outlier(own: tuple[float, float], others: tuple[float, float]) -> bool:
    """Whether so many (answers, failures) are far worse than those of the other replicas together:
    a likelihood ratio test of two proportions."""
    own_requests, other_requests = sum(own), sum(others)
    if min(own_requests, other_requests) < LEAST_REQUESTS:
        return False
    share, other_share = own[1] / own_requests, others[1] / other_requests
    usual = (own[1] + others[1]) / (own_requests + other_requests)
    improbable = own_requests * _divergence(share, usual)
    improbable += other_requests * _divergence(other_share, usual)
    return share > other_share and improbable >= LIMIT


def _divergence(share: float, usual: float) -> float:
    """How badly a coin with the ``usual`` chance explains the observed ``share`` (Kullback and
    Leibler's measure, in nats). Nothing is improbable where everything, or nothing, fails."""
    if not 0 < usual < 1:
        return 0.0
    nats = share * math.log(share / usual) if share else 0.0
    return nats + ((1 - share) * math.log((1 - share) / (1 - usual)) if share < 1 else 0.0)
