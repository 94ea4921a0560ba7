"""Which replica gets a request: pure functions of the replicas' states and of random draws."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

# How many times slower a replica's answers must be before that counts, and how much it counts at
# most: averages of few answers differ by chance.
NOTABLY_SLOWER, MUCH_SLOWER = 2.0, 4.0


class Health(IntEnum):
    """DOWN gets no requests; UNKNOWN (still connecting) gets them only if no replica is UP."""

    DOWN = 0
    UNKNOWN = 1
    UP = 2


class ReplicaState(NamedTuple):
    """What the choice is based on.

    ``failures`` are what it refused or did not answer lately: each counts as a request in flight,
    since a replica that refuses at once has nothing in flight and would look least busy.
    ``serves``: it has the model. ``is_right``: its last golden probe of the model gave the right
    response, or there was none. ``is_ejected``: it fails so much more of the model's requests than
    the others that it gets none.
    ``latency_s``: how long it takes to answer one; 0.0 if that is not known. ``weight``: the part
    of its usual share that it gets, less than 1.0 while it is new. ``load``: the work under way
    there, in requests like the one to send; None: each of those in flight is as much as that.
    ``is_drained``: an operator has drained it. ``is_silent``: it may hang.
    """

    health: Health
    inflight: int
    failures: int = 0
    serves: bool = True
    is_right: bool = True
    is_ejected: bool = False
    latency_s: float = 0.0
    weight: float = 1.0
    load: float | None = None
    is_drained: bool = False
    is_silent: bool = False

    @property
    def work(self) -> float:
        """What it has to do, with the one to send, which each failure counts as much as."""
        load = self.inflight if self.load is None else self.load
        return load + self.failures + 1


def candidates(states: Sequence[ReplicaState]) -> list[int]:
    """The indices of the replicas that may get the request: the healthiest that serve the model,
    without those whose probe failed, ejected ones, silent ones and drained ones, if there are
    others; [] if there is none. So nothing is refused because everything is ejected.

    A drain is the least of these: an operator may wait, and a caller should not get a wrong answer
    meanwhile."""
    best_rank = 0
    indices: list[int] = []
    for index, state in enumerate(states):
        rank = 0
        if state.serves and state.health:
            rank = 16 * state.health + 8 * state.is_right + 4 * (not state.is_ejected)
            rank += 2 * (not state.is_silent) + (not state.is_drained)
        if rank > best_rank:
            best_rank, indices = rank, [index]
        elif rank and rank == best_rank:
            indices.append(index)
    return indices


def choose(
    states: Sequence[ReplicaState], max_inflight: int, draw: Callable[[], float]
) -> int | None:
    """The index of one of the candidates with fewer than ``max_inflight`` requests in flight; None
    if every candidate is full or there is none.

    Of two that are drawn at random the one with less work to do gets it (the power of two choices):
    gateways that do not know of each other's requests all run to the one that is least busy, but
    rarely draw the same two. ``draw`` returns a number from [0, 1).
    """
    free = [index for index in candidates(states) if states[index].inflight < max_inflight]
    # One that is new is drawn less often, as long as there is another.
    drawn = [index for index in free if states[index].weight >= 1 or draw() < states[index].weight]
    drawn = drawn or free
    if not drawn:
        return None
    if len(drawn) == 1:
        return drawn[0]
    first = drawn.pop(int(draw() * len(drawn)))
    second = drawn[int(draw() * len(drawn))]
    return first if _goes_first(states[first], states[second], draw) else second


def by_lot(
    states: Sequence[ReplicaState],
    indices: Sequence[int],
    max_inflight: int,
    draw: Callable[[], float],
) -> int | None:
    """One of the candidates, whose ``indices`` these are, each as likely as the others; None if one
    of them is full, since then it would not be chance alone."""
    if not indices or any(states[index].inflight >= max_inflight for index in indices):
        return None
    return indices[int(draw() * len(indices))]


def _goes_first(one: ReplicaState, other: ReplicaState, draw: Callable[[], float]) -> bool:
    """Whether the request goes to ``one``, which was drawn before the ``other``."""
    slowness = _slowness(one, other)
    if one.work == other.work:
        # By lot, so that the slower one is asked on, and is found to be quick again when it is.
        return draw() < 1 / (1 + slowness)
    return one.work * slowness <= other.work


def _slowness(one: ReplicaState, other: ReplicaState) -> float:
    """How many times slower than the ``other`` this one is, as far as that counts."""
    if not one.latency_s or not other.latency_s:
        return 1.0
    ratio = one.latency_s / other.latency_s
    if 1 / NOTABLY_SLOWER < ratio < NOTABLY_SLOWER:
        return 1.0
    return min(max(ratio, 1 / MUCH_SLOWER), MUCH_SLOWER)


def preferred(sequence: int | str, addresses: Iterable[str]) -> list[str]:
    """The addresses in this sequence's order of preference (rendezvous hashing).

    Every worker and gateway with the same list computes the same order, and adding or removing an
    address moves no sequence between the others.
    """

    def weight(address: str) -> bytes:
        return hashlib.blake2b(f"{address}\0{sequence}".encode(), digest_size=8).digest()

    return sorted(addresses, key=weight, reverse=True)
