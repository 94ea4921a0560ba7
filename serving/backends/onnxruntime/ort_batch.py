"""Run requests through one ONNX Runtime session: which sizes are run, which CUDA graphs are
replayed, and whose fault a failure is. ort_jobs.py merges the requests and splits the outputs.

Nothing here depends on Triton, so unit tests can run it.
"""

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from ort_cuda_graph import CudaGraph, differ, graph_shapes
from ort_graph import Config, Graph, ModelRefused, model_dims
from ort_idle import IdleCores
from ort_jobs import (
    Array,
    BatchError,
    InvalidInput,
    Job,
    JobRunner,
    RunFailed,
    Tensors,
    symbol_conflict,
)
from ort_lengths import cost_of_a_run
from ort_session import run_options

Shapes = tuple[tuple[str, tuple[int, ...]], ...]

# A run after one of another size, relative to a run after one of the same size: on an H200 above
# 100 for a convolutional model, about 1 for others.
COSTLY_CHANGE = 3
# Under load the next requests are there at once: 0.02 of what the last ones took. One caller that
# waits for each answer comes back after 0.5 and more.
IDLE_SHARE = 0.25

# Rows and length of the runs that are measured: near the ends of what short texts under load make.
MEASURED_RUNS = ((1, 8), (4, 16))
MEASUREMENTS, MEASURED_S = 5, 0.3

# ONNX Runtime also raises InvalidArgument for options that the operator wrote.
BLAMES_INPUT = re.compile(r"while running \w+ node|for input: |input data type")


class Runner(JobRunner):
    """One session with its model's config."""

    def __init__(
        self,
        config: Config,
        graph: Graph,
        session: Any,
        alone: tuple[IdleCores, Any] | None = None,
    ) -> None:
        """``alone``: a session of more threads, for while there are idle cores (ort_idle.py)."""
        super().__init__(config, graph)
        self._session, self._alone = session, alone
        self._faster: Any = None  # its session, while requests that are alone are answered
        self._began = self._ended = 0.0  # the last batch of requests
        self._options = run_options(config)
        self._sizes: list[int] = []  # of rows per run, ascending, if only these are run
        self._sessions: dict[int, Any] = {}  # by rows per run, where each size has its own
        self._graphs: dict[Shapes, CudaGraph] = {}

    def measure_run_cost(self) -> None:
        """Measure how many positions a run costs beside its own: from now on rows of unlike lengths
        share a run where that is cheaper on this machine and in this precision.

        Two small runs alternate, for 0.3 s at most after the first; the least of each counts. A
        model without sequences, or one that cannot take these runs, is left as it is.
        """
        if not self._sequences:
            return
        jobs = []
        for shape in MEASURED_RUNS:
            feeds = {
                name: np.full(shape, name == self._sequences.mask, self._inputs[name].dtype)
                for name in self._sequences.fill
            }
            jobs.append(Job(feeds, frozenset(self._outputs), shape[0]))
        least = [math.inf] * len(jobs)
        ends = math.inf
        try:
            for _ in range(1 + MEASUREMENTS):
                for index, job in enumerate(jobs):
                    started = time.thread_time()
                    self._run_once(job.feeds, job.requested, job.rows)
                    least[index] = min(least[index], time.thread_time() - started)
                if time.perf_counter() > ends:
                    break
                ends = min(ends, time.perf_counter() + MEASURED_S)
        except BatchError:
            return
        positions = [rows * length for rows, length in MEASURED_RUNS]
        self._run_cost = cost_of_a_run(list(zip(positions, least, strict=True)))

    def fix_sizes(self, config: Config, new_session: Callable[[], object]) -> None:
        """If a change of batch size is costly, from now on only run 1, 4, 16 ... ``max_batch_size``
        rows, padded with copies of the last row, each size in a session of its own.

        On a GPU, ONNX Runtime searches for convolution algorithms whenever the shape differs from
        the previous run's: 0.1 to 3 s for EfficientNet on an H200 (docs/gpu.md), with every request
        waiting behind it. The cost is measured here, on zeros, which also warms up each session.
        Nothing is done for strings, nor for open dims, of which there are too many lengths.

        Raises BatchError if the graph cannot take zeros.
        """
        tensors = [self._inputs[entry["name"]] for entry in config["input"]]
        dims = [model_dims(entry) for entry in config["input"]]
        has_open_dims = any(-1 in shape for shape in dims)
        if has_open_dims or any(tensor.dtype == np.object_ for tensor in tensors):
            return

        def seconds(rows: int) -> float:
            shapes = [(rows, *shape) if self._batched else tuple(shape) for shape in dims]
            feeds = {
                tensor.name: np.zeros(shape, tensor.dtype)
                for tensor, shape in zip(tensors, shapes, strict=True)
            }
            job = self.job(feeds, frozenset())
            self._run_once(job.feeds, job.requested, job.rows)
            return self.last_run_s

        largest = config["max_batch_size"]
        seconds(1)
        if largest < 2:
            return
        after_change = min((seconds(largest), seconds(1))[1] for _ in range(2))
        unchanged = min(seconds(1) for _ in range(2))
        if after_change < COSTLY_CHANGE * unchanged:
            return
        sizes = [1]
        while sizes[-1] * 4 < largest:
            sizes.append(sizes[-1] * 4)
        self._sessions = {1: self._session}
        for size in (*sizes[1:], largest):
            self._sessions[size] = new_session()
            seconds(size)
        self._sizes = list(self._sessions)

    def capture_graphs(self, config: Config, device: tuple[str, int]) -> None:
        """Capture a CUDA graph for 1, 2, 4 ... ``max_batch_size`` rows of each length, and from now
        on only run these numbers of rows, padded with copies of the last one. Each graph is
        compared with an ordinary run; other lengths are run without a graph.

        ``device`` is its kind, "cuda", and number. Raises ModelRefused where the model cannot be
        captured, BatchError where its run fails.
        """
        largest = max(1, config["max_batch_size"])
        sizes = [2**power for power in range(largest.bit_length()) if 2**power < largest]
        sizes.append(largest)
        tensors = {entry["name"]: self._inputs[entry["name"]] for entry in config["input"]}
        for number, shapes in enumerate(graph_shapes(config, tensors.values(), sizes), start=1):
            ones, other = (
                self.job(
                    {
                        name: np.resize(np.array(values, tensors[name].dtype), shape)
                        for name, shape in shapes.items()
                    },
                    frozenset(),
                ).feeds
                for values in ([1], [1, 1, 0])
            )
            graph = CudaGraph(self._session, config, device, number)
            try:
                graph.capture(ones, dict(zip(self._outputs, self._ordinary(ones), strict=True)))
                replayed, ordinary = graph.run(self._outputs, other), self._ordinary(other)
            except Exception as error:  # ONNX Runtime's errors share no base class
                raise self._explain(error, ones) from error
            if differ(replayed, ordinary):
                raise ModelRefused(
                    f"its CUDA graph for {shapes} gives other values than a run without"
                )
            self._graphs[_shapes(ones)] = graph
        self._sizes = sizes

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Around the runs of one batch of requests: decides which session they take."""
        now = time.perf_counter()
        if self._alone:
            idle_cores, session = self._alone
            pause, busy = now - self._ended, self._ended - self._began
            is_alone = pause > IDLE_SHARE * busy and idle_cores
            self._faster = session if is_alone else None
        self._began = now
        yield
        self._ended = time.perf_counter()

    def _ordinary(self, feeds: Tensors) -> list[Array]:
        return list(self._session.run(list(self._outputs), feeds, self._options))

    def _run_once(self, feeds: Tensors, requested: frozenset[str], rows: int) -> Tensors:
        names = [name for name in self._outputs if name in requested]
        run_rows = next((size for size in self._sizes if 0 < rows <= size), rows)
        if run_rows > rows:
            feeds = {name: _padded(array, run_rows) for name, array in feeds.items()}
        session = self._faster or self._sessions.get(run_rows, self._session)
        graph = self._graphs.get(_shapes(feeds)) if self._graphs else None
        started = time.perf_counter()
        try:
            arrays = graph.run(names, feeds) if graph else session.run(names, feeds, self._options)
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise self._explain(error, feeds) from error
        self.last_run_s = time.perf_counter() - started
        return {
            name: self._checked(name, array, run_rows)[: rows if run_rows > rows else None]
            for name, array in zip(names, arrays, strict=True)
        }

    def _explain(self, error: Exception, feeds: Tensors) -> BatchError:
        conflict = symbol_conflict(self._inputs, feeds)
        if conflict:
            return InvalidInput(self._model, *conflict)
        if isinstance(error, InvalidArgument) and BLAMES_INPUT.search(str(error)):
            names = " or ".join(f"'{name}'" for name in feeds)
            return InvalidInput(
                self._model, names, _reason(error), "send values that the model takes"
            )
        return RunFailed(f"model '{self._model}': ONNX Runtime failed: {_reason(error)}")


def _shapes(feeds: Tensors) -> Shapes:
    return tuple((name, array.shape) for name, array in feeds.items())


def _padded(array: Array, rows: int) -> Array:
    return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)])


def _reason(error: Exception) -> str:
    """ONNX Runtime's own message without file names, which clients must not see."""
    text = " ".join(str(error).split())
    node = re.search(r"while running (\w+) node", text)
    _, _, status = text.rpartition("Status Message: ")
    # Paths of its sources, and node names that look like paths.
    status = re.sub(r"(?<![\w.])/[^\s'\",;)]+", "", status).strip()
    return f"{node[1]}: {status}" if node else status
