"""What to try next, given what was measured: a pure function, so that a search that was cut off
goes on where it was.

Coordinate descent from the default: the best value of one knob, then of the next, and around again
until a round changes nothing. Each figure is a ratio to the default, measured beside it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from serving.tuning.setting import Setting
from serving.tuning.space import Space

# A smaller gain is noise: two passes of one setting differ by as much on a busy machine.
WORTH = 1.02
ROUNDS = 3
Ratios = Mapping[Setting, float | None]  # None: measured, and not to be used


@dataclass(frozen=True)
class Move:
    """One knob turned: its name, where the search stood, and the ratios before and after."""

    knob: str
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
    knob: str = ""
    round: int = 1


def standing(space: Space, ratios: Ratios) -> Standing:
    """The search replayed over all that was measured."""
    best, ratio = space.default, 1.0
    moves: list[Move] = []
    for number in range(1, ROUNDS + 1):
        before = best
        for knob in space.moves(best):
            others = space.moves(best).get(knob, [])
            missing = next((each for each in others if each not in ratios), None)
            if missing:
                return Standing(best, ratio, tuple(moves), missing, knob, number)
            leader, found = _leader(others, ratios)
            if leader and found > ratio * WORTH:
                moves.append(Move(knob, best, leader, ratio, found))
                best, ratio = leader, found
        if best == before:
            break
    return Standing(best, ratio, tuple(moves), None, round=number)


def finalists(ratios: Ratios, count: int) -> list[Setting]:
    """The best settings, to be measured once more: the best of many noisy figures flatters."""
    good = [(ratio, setting) for setting, ratio in ratios.items() if ratio and ratio > WORTH]
    good.sort(key=lambda each: (-each[0], each[1].key))
    return [setting for _, setting in good[:count]]


def _leader(others: list[Setting], ratios: Ratios) -> tuple[Setting | None, float]:
    best, found = None, 0.0
    for each in others:
        ratio = ratios[each]
        if ratio and ratio > found:
            best, found = each, ratio
    return best, found
