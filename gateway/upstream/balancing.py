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
    best, found = 0, []
    for index, (health, _, _, serves, is_right) in enumerate(states):
        rank = 2 * health + is_right if serves and health else 0
        if rank > best:
            best, found = rank, [index]
        elif rank and rank == best:
            found.append(index)
    return found


def choose(states: Sequence[ReplicaState], max_inflight: int, draw: float) -> int | None:
    """The index of the least busy candidate with less than ``max_inflight`` requests under way.

    Ties are decided by ``draw``, from [0, 1). None when every candidate is full, or none is left.
    """
    least = 0
    ties: list[int] = []
    for index in candidates(states):
        _, inflight, failures, _, _ = states[index]
        load = inflight + failures
        if inflight >= max_inflight or (ties and load > least):
            continue
        if ties and load == least:
            ties.append(index)
        else:
            least, ties = load, [index]
    return ties[int(draw * len(ties))] if ties else None


def preferred(sequence: int | str, addresses: Iterable[str]) -> list[str]:
    """The addresses in the order in which this sequence belongs to them (rendezvous hashing).

    Every worker and gateway with the same list comes to the same order, and one that is added or
    taken away moves no sequence between the others.
    """

    def weight(address: str) -> bytes:
        return hashlib.blake2b(f"{address}\0{sequence}".encode(), digest_size=8).digest()

    return sorted(addresses, key=weight, reverse=True)
