"""Rows of unlike length in few runs, none of which computes much padding.

A model whose inputs are sequences, padded on the right, says in its config which input is 0 where
there is only padding (``padding_mask``) and what the others are there (``padding_value``). On a CPU
padding costs as much as text, so each row is cut to where its mask ends, and rows of similar length
share a run. Where a tensor of the model has no fixed length on its first axis after the batch's,
that axis is the sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from ort_graph import Config, ModelRefused

Array = npt.NDArray[Any]
MASK, VALUE = "padding_mask", "padding_value"

# What a run costs beside its positions, in positions: all weights pass through the cache once,
# whatever the number of rows. MiniLM in FP32 on one core takes 4.0 ms + 0.72 ms for each position
# on an AMD EPYC (Zen 1), and 4.2 ms + 0.18 ms on an Intel Xeon with AVX-512, so that it is measured
# where it can be (``Runner.measure_run_cost``).
RUN_COST = 5.5
LEAST_RUN_COST, MOST_RUN_COST = 1.0, 64.0


@dataclass(frozen=True)
class Sequences:
    """Which of a model's tensors are sequences, and what pads them. ``fill`` is by input."""

    mask: str
    fill: dict[str, int]
    outputs: frozenset[str]

    @classmethod
    def of(cls, config: Config) -> "Sequences | None":
        """What the config says; None where it names no mask. ModelRefused where it names one that
        is not a sequence of the model."""
        mask = _parameter(config, MASK)
        if not mask:
            return None
        value = _parameter(config, VALUE) or "0"
        inputs = {entry["name"]: 0 for entry in config["input"] if _is_sequence(entry)}
        if mask not in inputs or config["max_batch_size"] < 1:
            raise ModelRefused(
                f"model '{config['name']}': parameter '{MASK}' is '{mask}': name an "
                "input with the dims [ -1 ], in a model with a batch axis, or remove it"
            )
        fill = {name: 0 if name == mask else int(value) for name in inputs}
        outputs = (entry["name"] for entry in config["output"] if _is_sequence(entry))
        return cls(mask, fill, frozenset(outputs))


def merge_unlike_shapes(config: Config) -> None:
    """Let Triton's dynamic batcher put requests of different shapes into one call of a model on a
    GPU, or of one whose sequences the backend itself pads (``padding_mask``).

    By default it only merges neighbors of equal shape, so texts of two length buckets, in random
    order, hardly ever share a run. Runner groups the requests of a call itself, and on a GPU a run
    costs nearly the same with 1 row as with 64. On a CPU it costs 64 times as much, and the first
    request of a call waits for the last; but while all instances are busy, Triton 2.51 polls for
    requests of the same shape, which costs 1.4 to 2.5 ms of a core for each request to MiniLM.
    """
    groups = config.get("instance_group", ())
    is_on_gpu = any(group.get("kind") == "KIND_GPU" for group in groups)
    if "dynamic_batching" in config and (is_on_gpu or _parameter(config, MASK)):
        for entry in config["input"]:
            entry["allow_ragged_batch"] = True


def row_lengths(mask: Array) -> list[int]:
    """For each row of a mask [rows, positions]: the positions up to the last that is not 0, at
    least 1."""
    return [int(row.nonzero()[0][-1]) + 1 if row.any() else 1 for row in mask]


def cost_of_a_run(runs: Sequence[tuple[int, float]]) -> float:
    """What a run costs beside its positions, in positions, by two runs: of each its positions and
    the seconds it took."""
    (few, short), (many, long) = runs
    for_position = (long - short) / (many - few)
    if for_position <= 0:
        return MOST_RUN_COST
    return min(max(short / for_position - few, LEAST_RUN_COST), MOST_RUN_COST)


def similar(lengths: Sequence[int], run_cost: float = RUN_COST) -> list[list[int]]:
    """Indexes of rows by run: runs and padding together cost least, where a run costs as much as
    ``run_cost`` positions."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    # Of the shortest `end` rows: the least cost, and where their last run begins.
    least, begins = [0.0], [0]
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        costs = [least[begin] + (end - begin) * longest for begin in range(end)]
        begin = min(range(end), key=costs.__getitem__)
        least.append(costs[begin] + run_cost)
        begins.append(begin)
    runs = []
    end = len(order)
    while end:
        runs.append(sorted(order[begins[end] : end]))
        end = begins[end]
    return runs[::-1]


def padded_to(rows: Sequence[Array], length: int, fill: int) -> Array:
    """The rows as one array, cut to ``length`` and filled up to it."""
    array = np.full((len(rows), length, *rows[0].shape[1:]), fill, dtype=rows[0].dtype)
    for target, row in zip(array, rows, strict=True):
        target[: len(row)] = row[:length]
    return array


def _parameter(config: Config, name: str) -> str:
    return str(config.get("parameters", {}).get(name, {}).get("string_value", ""))


def _is_sequence(entry: Config) -> bool:
    return bool(entry["dims"]) and int(entry["dims"][0]) == -1
