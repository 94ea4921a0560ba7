"""What to try next, given what was measured: a pure function, so that a search that was cut off
goes on where it was.

Coordinate descent from the default: the best value of one serving parameter, then of the next, and
around again
until a round changes nothing. Each figure is a ratio to the default, measured beside it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serving.tuning.setting import Setting
from serving.tuning.space import Space

# A smaller gain is not worth a setting of its own.
WORTH = 1.02
ROUNDS = 3


@dataclass(frozen=True)
class Score:
    """Throughput by the default's, and the standard error of its logarithm (0.03: three per cent),
    as the pairs of passes differed."""

    ratio: float
    error: float = 0.0

    def beats(self, other: "Score") -> bool:
        """Whether the gain is worth it and above what the noise of the two would make."""
        noise = math.hypot(self.error, other.error)
        return math.log(self.ratio / other.ratio) > max(math.log(WORTH), noise)


DEFAULT = Score(1.0)
Scores = Mapping[Setting, Score | None]  # None: measured, and not to be used


@dataclass(frozen=True)
class Move:
    """One serving parameter turned: its name, where the search stood, and the ratios before and
    after."""

    serving_parameter: str
    before: Setting
    after: Setting
    ratio_before: float
    ratio_after: float


@dataclass(frozen=True)
class Standing:
    """How far a search is: the best setting, how it was reached, and what to measure next (None:
    the search is over)."""

    best: Setting
    ratio: float
    moves: tuple[Move, ...]
    next: Setting | None
    serving_parameter: str = ""
    round: int = 1


def standing(space: Space, scores: Scores) -> Standing:
    """The search replayed over all that was measured. The default needs no trial: it is 1."""
    scores = {**scores, space.default: DEFAULT}
    best, score = space.default, DEFAULT
    moves: list[Move] = []
    for number in range(1, ROUNDS + 1):
        before = best
        for serving_parameter in space.moves(best):
            others = space.moves(best).get(serving_parameter, [])
            missing = next((each for each in others if each not in scores), None)
            if missing:
                return Standing(best, score.ratio, tuple(moves), missing, serving_parameter, number)
            leader, found = _leader(others, scores)
            if leader and found.beats(score):
                moves.append(Move(serving_parameter, best, leader, score.ratio, found.ratio))
                best, score = leader, found
        if best == before:
            break
    return Standing(best, score.ratio, tuple(moves), None, round=number)


def concluded(space: Space, scores: Scores) -> Standing:
    """Where the search stands if nothing more is measured: the serving parameter under way counts
    too."""
    known = dict(scores)
    while (now := standing(space, known)).next:
        known[now.next] = None
    return now


def finalists(reached: Standing, count: int) -> list[Setting]:
    """The last ``count`` settings on the way to the best, the one with fewest serving parameters
    turned first: they are measured once more, since the best of many noisy figures flatters."""
    return [move.after for move in reached.moves[-count:]]


def winner(finals: Sequence[tuple[Setting, Score | None]]) -> Setting | None:
    """The setting to keep: a serving parameter more is kept only if it still brings more than
    noise; None when not even the first beats the default."""
    best, score = None, DEFAULT
    for setting, found in finals:
        if found and found.beats(score):
            best, score = setting, found
    return best


def _leader(others: list[Setting], scores: Scores) -> tuple[Setting | None, Score]:
    best, found = None, Score(0.0)
    for each in others:
        score = scores[each]
        if score and score.ratio > found.ratio:
            best, found = each, score
    return best, found
