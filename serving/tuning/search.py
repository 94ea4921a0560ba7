"""What to try next, given what was measured: a pure function, so that an interrupted search resumes
where it was.

Coordinate descent from the default: the best value of one serving parameter, then of the next, and
around again until a round changes nothing. Each figure is a ratio to the default, measured beside
it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serving.tuning.setting import Setting
from serving.tuning.space import Space

# A smaller gain is not worth changing the setting.
LEAST_GAIN = 1.02
ROUNDS = 3


@dataclass(frozen=True)
class Score:
    """Throughput relative to the default's, and the standard error of its logarithm (0.03: three
    percent) over the pairs of passes."""

    ratio: float
    error: float = 0.0

    def beats(self, other: "Score") -> bool:
        """Whether the gain is worth it and above the noise of the two scores."""
        noise = math.hypot(self.error, other.error)
        return math.log(self.ratio / other.ratio) > max(math.log(LEAST_GAIN), noise)


DEFAULT = Score(1.0)
Scores = Mapping[Setting, Score | None]  # None: measured, but must not be used


@dataclass(frozen=True)
class Move:
    """One serving parameter changed: its name, and the setting and ratio before and after."""

    serving_parameter: str
    before: Setting
    after: Setting
    ratio_before: float
    ratio_after: float


@dataclass(frozen=True)
class SearchState:
    """The state of a search: the best setting, how it was reached, and what to measure next (None:
    the search is over)."""

    best: Setting
    ratio: float
    moves: tuple[Move, ...]
    next: Setting | None
    serving_parameter: str = ""
    round: int = 1


def search_state(space: Space, scores: Scores) -> SearchState:
    """The search replayed over all measurements. The default needs no trial: its score is 1."""
    scores = {**scores, space.default: DEFAULT}
    best, score = space.default, DEFAULT
    moves: list[Move] = []
    for number in range(1, ROUNDS + 1):
        before = best
        for serving_parameter in space.moves(best):
            others = space.moves(best).get(serving_parameter, [])
            unmeasured = next((setting for setting in others if setting not in scores), None)
            if unmeasured:
                return SearchState(
                    best, score.ratio, tuple(moves), unmeasured, serving_parameter, number
                )
            leader, leading_score = _leader(others, scores)
            if leader and leading_score.beats(score):
                moves.append(
                    Move(serving_parameter, best, leader, score.ratio, leading_score.ratio)
                )
                best, score = leader, leading_score
        if best == before:
            break
    return SearchState(best, score.ratio, tuple(moves), None, round=number)


def concluded(space: Space, scores: Scores) -> SearchState:
    """The state of the search if nothing more is measured: the serving parameter under way counts
    too."""
    known = dict(scores)
    while (current := search_state(space, known)).next:
        known[current.next] = None
    return current


def finalists(reached: SearchState, count: int) -> list[Setting]:
    """The last ``count`` settings on the way to the best, fewest changed serving parameters first.
    They are measured once more, since the best of many noisy figures is too optimistic."""
    return [move.after for move in reached.moves[-count:]]


def winner(finals: Sequence[tuple[Setting, Score | None]]) -> Setting | None:
    """The setting to keep: one more changed serving parameter is kept only if it still gains more
    than noise; None if not even the first beats the default."""
    best, best_score = None, DEFAULT
    for setting, score in finals:
        if score and score.beats(best_score):
            best, best_score = setting, score
    return best


def _leader(others: list[Setting], scores: Scores) -> tuple[Setting | None, Score]:
    best, best_score = None, Score(0.0)
    for setting in others:
        score = scores[setting]
        if score and score.ratio > best_score.ratio:
            best, best_score = setting, score
    return best, best_score
