"""Run requests through one engine: merge what can be merged, split the outputs, and let only the
request at fault fail.

    BatchError
      +- InvalidInput   the client's fault: a wrong rank, axis or value; carries the marker
      +- RunFailed      everything else

The backend torch_export has a copy (serving/triton/backend_directory.py). Nothing here depends on
Triton or on an engine, so unit tests can run it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from ort_graph import Config, Graph, GraphTensor, is_squeezed
from ort_lengths import RUN_COST, Sequences, padded_to, row_lengths, similar

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]

# The gateway only shows clients messages with this marker, and strips it.
MARKER = "[tidegate:invalid_input]"


class BatchError(Exception):
    """One request failed."""


class InvalidInput(BatchError):
    """The client sent something that the graph cannot take."""

    def __init__(self, model: str, tensors: str, problem: str, advice: str) -> None:
        super().__init__(f"{MARKER} model '{model}' tensor {tensors}: {problem}; {advice}")


class RunFailed(BatchError):
    """The engine failed, or returned outputs that cannot be split."""


@dataclass(frozen=True)
class Job:
    """One request's feeds, in the graph's order, and the names of the outputs it requests."""

    feeds: Tensors
    requested: frozenset[str]
    rows: int

    @property
    def shape_key(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        return tuple((name, array.shape[1:]) for name, array in self.feeds.items())


class JobRunner(ABC):
    """A model's config and its graph; a subclass has the engine that runs it."""

    def __init__(self, config: Config, graph: Graph) -> None:
        self._model: str = config["name"]
        self._batched = config["max_batch_size"] > 0
        self._inputs = graph.inputs | graph.defaults
        self._outputs = tuple(entry["name"] for entry in config["output"])
        self._padding = _padding(config, graph, self._batched)
        self._sequences = Sequences.of(config)
        self._run_cost = RUN_COST
        self.last_run_s = math.inf  # before the first run, a run is assumed to be long

    @abstractmethod
    def _run_once(self, feeds: Tensors, requested: frozenset[str], rows: int) -> Tensors:
        """The requested outputs of one run, each passed through ``_checked``; a BatchError if it
        fails. Sets ``last_run_s``."""

    def job(self, feeds: Tensors, requested: frozenset[str]) -> Job:
        """A request as the graph takes it; InvalidInput if the graph cannot take it."""
        fitted = {
            name: self._fit(tensor, feeds[name])
            for name, tensor in self._inputs.items()
            if name in feeds
        }
        rows = next(iter(fitted.values())).shape[0] if self._batched and fitted else 1
        return Job(fitted, requested & set(self._outputs) or frozenset(self._outputs), rows)

    def run(self, jobs: Sequence[Job]) -> list[Tensors | BatchError]:
        """The outputs of each job, or its error, in order."""
        if self._sequences and all(_is_rectangular(job, self._sequences) for job in jobs):
            try:
                if len(jobs) == 1 and jobs[0].rows == 1:
                    return [self._run_row(jobs[0], self._sequences)]
                return self._run_sequences(jobs, self._sequences)
            except BatchError:
                return [self._run_alone(job) for job in jobs]
        results: dict[int, Tensors | BatchError] = {}
        for group in self._groups(jobs):
            members = [jobs[index] for index in group]
            results.update(zip(group, self._run_group(members), strict=True))
        return [results[index] for index in range(len(jobs))]

    def _fit(self, tensor: GraphTensor, array: Array) -> Array:
        if tensor.name in self._padding:
            array = array.reshape(array.shape[: 1 if self._batched else 0])
        if tensor.axes and not _fits(array.shape, tensor.dims):
            raise InvalidInput(
                self._model,
                f"'{tensor.name}'",
                f"the shape is {list(array.shape)} but the graph takes {list(tensor.dims)}",
                "send that shape (-1 is any length)",
            )
        return self._as_text(tensor.name, array) if array.dtype == np.object_ else array

    def _as_text(self, name: str, array: Array) -> Array:
        # ONNX strings are UTF-8, and ONNX Runtime would use str(bytes) as the text.
        try:
            texts = [item.decode() if isinstance(item, bytes) else item for item in array.flat]
        except UnicodeDecodeError as error:
            raise InvalidInput(
                self._model,
                f"'{name}'",
                f"a string is not UTF-8 ({error.reason})",
                "encode it as UTF-8",
            ) from None
        return np.array(texts, dtype=np.object_).reshape(array.shape)

    def _groups(self, jobs: Sequence[Job]) -> Iterator[list[int]]:
        """Indices of the jobs that can share a run: all of them, unless shapes differ."""
        if not self._batched:
            yield from ([index] for index in range(len(jobs)))
            return
        groups: dict[object, list[int]] = {}
        for index, job in enumerate(jobs):
            groups.setdefault(job.shape_key, []).append(index)
        yield from groups.values()

    def _run_group(self, jobs: Sequence[Job]) -> list[Tensors | BatchError]:
        if len(jobs) == 1:
            return [self._run_alone(jobs[0])]
        try:
            return self._run_merged(jobs)
        except BatchError:
            # One bad request must not fail the others: each is run alone.
            return [self._run_alone(job) for job in jobs]

    def _run_alone(self, job: Job) -> Tensors | BatchError:
        try:
            return self._run_once(job.feeds, job.requested, job.rows)
        except BatchError as error:
            return error

    def _run_merged(self, jobs: Sequence[Job]) -> list[Tensors | BatchError]:
        feeds = {name: np.concatenate([job.feeds[name] for job in jobs]) for name in jobs[0].feeds}
        requested = frozenset[str]().union(*(job.requested for job in jobs))
        merged = self._run_once(feeds, requested, sum(job.rows for job in jobs))
        results, start = [], 0
        for job in jobs:
            rows = slice(start, start + job.rows)
            results.append({name: merged[name][rows] for name in job.requested})
            start += job.rows
        return list(results)

    def _run_row(self, job: Job, sequences: Sequences) -> Tensors:
        """As ``_run_sequences`` for the commonest request: with nothing to sort or to join."""
        mask = job.feeds[sequences.mask]
        (length,) = row_lengths(mask)
        feeds = {name: array[:, :length] for name, array in job.feeds.items()}
        outputs = dict(self._run_once(feeds, job.requested, 1))
        for name in sequences.outputs.intersection(outputs):
            padded = np.zeros((1, mask.shape[1], *outputs[name].shape[2:]), outputs[name].dtype)
            padded[:, :length] = outputs[name]
            outputs[name] = padded
        return outputs

    def _run_sequences(
        self, jobs: Sequence[Job], sequences: Sequences
    ) -> list[Tensors | BatchError]:
        """All rows of all jobs without their padding, in runs of similar length. Where an output is
        a sequence, it is 0 in the padding."""
        feeds = {name: [row for job in jobs for row in job.feeds[name]] for name in jobs[0].feeds}
        lengths = [length for job in jobs for length in row_lengths(job.feeds[sequences.mask])]
        width = max(job.feeds[sequences.mask].shape[1] for job in jobs)
        requested = frozenset[str]().union(*(job.requested for job in jobs))
        outputs: dict[str, Array] = {}
        for run in similar(lengths, self._run_cost):
            length = max(lengths[row] for row in run)
            arrays = {}
            for name, rows in feeds.items():
                members = [rows[row][: lengths[row]] for row in run]
                arrays[name] = padded_to(members, length, sequences.fill[name])
            for name, array in self._run_once(arrays, requested, len(run)).items():
                is_sequence = name in sequences.outputs
                if name not in outputs:
                    shape = (width, *array.shape[2:]) if is_sequence else array.shape[1:]
                    outputs[name] = np.zeros((len(lengths), *shape), array.dtype)
                if is_sequence:
                    outputs[name][run, :length] = array
                else:
                    outputs[name][run] = array
        results: list[Tensors | BatchError] = []
        start = 0
        for job in jobs:
            own = slice(start, start + job.rows)
            job_width = job.feeds[sequences.mask].shape[1]
            results.append(
                {
                    name: outputs[name][own, :job_width]
                    if name in sequences.outputs
                    else outputs[name][own]
                    for name in job.requested
                }
            )
            start += job.rows
        return results

    def _checked(self, name: str, array: Array | None, rows: int) -> Array:
        """The output as the config declares it; RunFailed if it cannot be split into rows."""
        if array is None:
            raise RunFailed(f"model '{self._model}' tensor '{name}': the graph returned no value")
        if self._batched and (array.ndim == 0 or array.shape[0] != rows):
            raise RunFailed(
                f"model '{self._model}' tensor '{name}': the graph returned shape "
                f"{list(array.shape)} for {rows} rows, so it does not batch; write "
                "max_batch_size: 0 in config.pbtxt"
            )
        ones = self._padding.get(name, ())
        bare = array.ndim == (1 if self._batched else 0)
        return array.reshape((*array.shape, *ones)) if ones and bare else array


def _is_rectangular(job: Job, sequences: Sequences) -> bool:
    """Whether the job has all of the model's sequences, and nothing else, of one length."""
    lengths = {array.shape[1:2] for array in job.feeds.values()}
    return len(lengths) == 1 and job.feeds.keys() == sequences.fill.keys()


def _padding(config: Config, graph: Graph, batched: bool) -> dict[str, tuple[int, ...]]:
    """For each tensor whose config has axes of length 1 that the graph lacks: those axes."""
    sides = ((config["input"], graph.inputs | graph.defaults), (config["output"], graph.outputs))
    return {
        entry["name"]: (1,) * len(entry["dims"])
        for entries, tensors in sides
        for entry in entries
        if is_squeezed(entry, tensors[entry["name"]], batched)
    }


def _fits(shape: tuple[int, ...], dims: tuple[int, ...]) -> bool:
    pairs = zip(shape, dims, strict=False)
    return len(shape) == len(dims) and all(dim in (-1, length) for length, dim in pairs)


def symbol_conflict(
    inputs: Mapping[str, GraphTensor], feeds: Tensors
) -> tuple[str, str, str] | None:
    """Two inputs with different lengths of one named axis, such as ids and mask of unequal length.

    Only checked after a run has failed: exporters give one name to axes that may broadcast, and
    then different lengths are valid.
    """
    seen: dict[str, tuple[str, int]] = {}
    for name, array in feeds.items():
        for axis, length in zip(inputs[name].axes, array.shape, strict=False):
            if not isinstance(axis, str):
                continue
            other, expected = seen.setdefault(axis, (name, length))
            if length != expected:
                problem = f"axis '{axis}' has length {length} here and {expected} in '{other}'"
                return f"'{name}'", problem, "send both with the same length"
    return None
