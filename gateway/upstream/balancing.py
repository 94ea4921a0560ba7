"""Which replica gets a request: pure functions of the replicas' states and of a random draw."""

import hashlib
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple


class Health(IntEnum):
    """DOWN gets no requests; UNKNOWN (still connecting) gets them only if no replica is UP."""

    DOWN = 0
    UNKNOWN = 1
    UP = 2


class ReplicaState(NamedTuple):
    """What the choice is based on.

    ``failures`` are the recent ones: each counts as a request in flight, since a replica that fails
    at once has nothing in flight and would look least busy. ``serves``: it has the model.
    ``is_right``: its last golden probe of the model gave the right response, or there was none.
    """

    health: Health
    inflight: int
    failures: int = 0
    serves: bool = True
    is_right: bool = True


def candidates(states: Sequence[ReplicaState]) -> list[int]:
    """The indices of the replicas that may get the request: the healthiest that serve the model,
    without those whose probe failed if there are others; [] if there is none."""
    best_rank = 0
    indices: list[int] = []
    for index, (health, _, _, serves, is_right) in enumerate(states):
        rank = 2 * health + is_right if serves and health else 0
        if rank > best_rank:
            best_rank, indices = rank, [index]
        elif rank and rank == best_rank:
            indices.append(index)
    return indices


def choose(states: Sequence[ReplicaState], max_inflight: int, draw: float) -> int | None:
    """The index of the least busy candidate with fewer than ``max_inflight`` requests in flight.

    ``draw``, from [0, 1), breaks ties. None if every candidate is full or there is none.
    """
    least_load = 0
    ties: list[int] = []
    for index in candidates(states):
        _, inflight, failures, _, _ = states[index]
        load = inflight + failures
        if inflight >= max_inflight or (ties and load > least_load):
            continue
        if ties and load == least_load:
            ties.append(index)
        else:
            least_load, ties = load, [index]
    return ties[int(draw * len(ties))] if ties else None


def preferred(sequence: int | str, addresses: Iterable[str]) -> list[str]:
    """The addresses in this sequence's order of preference (rendezvous hashing).

    Every worker and gateway with the same list computes the same order, and adding or removing an
    address moves no sequence between the others.
    """

    def weight(address: str) -> bytes:
        return hashlib.blake2b(f"{address}\0{sequence}".encode(), digest_size=8).digest()

    return sorted(addresses, key=weight, reverse=True)
