"""Which replica gets a request: pure functions of what is known of each, and of a random draw."""

import hashlib
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple


class Health(IntEnum):
    """DOWN is not asked; UNKNOWN (being connected to) is asked only where nothing is UP."""

    DOWN = 0
    UNKNOWN = 1
    UP = 2


class ReplicaState(NamedTuple):
    """What the choice goes by.

    ``failures`` are those of late: each counts as a request under way, since a replica that fails
    at once has nothing under way and would look least busy. ``serves``: it has the model.
    ``is_right``: its last golden probe of the model was answered rightly, or there was none.
    """

    health: Health
    inflight: int
    failures: int = 0
    serves: bool = True
    is_right: bool = True


def candidates(states: Sequence[ReplicaState]) -> list[int]:
    """Indexes of those that may be asked: the healthiest that serve it, without wrong ones where
    there are right ones; [] when nobody is left."""
    able = [index for index, state in enumerate(states) if state.serves and state.health]
    best = max(((states[i].health, states[i].is_right) for i in able), default=None)
    return [i for i in able if (states[i].health, states[i].is_right) == best]


def choose(states: Sequence[ReplicaState], max_inflight: int, draw: float) -> int | None:
    """The index of the least busy candidate with less than ``max_inflight`` requests under way.

    Ties are decided by ``draw``, from [0, 1). None when every candidate is full, or none is left.
    """
    free = [i for i in candidates(states) if states[i].inflight < max_inflight]
    if not free:
        return None
    loads = [states[i].inflight + states[i].failures for i in free]
    least = min(loads)
    ties = [i for i, load in zip(free, loads, strict=True) if load == least]
    return ties[int(draw * len(ties))]


def preferred(sequence: int | str, addresses: Iterable[str]) -> list[str]:
    """The addresses in the order in which this sequence belongs to them (rendezvous hashing).

    Every worker and gateway with the same list comes to the same order, and one that is added or
    taken away moves no sequence between the others.
    """

    def weight(address: str) -> bytes:
        return hashlib.blake2b(f"{address}\0{sequence}".encode(), digest_size=8).digest()

    return sorted(addresses, key=weight, reverse=True)
