"""What every task must implement so that its models can be converted, proved and served.

A task is opened on one source. ``converters.conversion`` asks it for a graph, ``tidegate`` for the
proof of the pipeline through Triton; neither knows which task it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from converters.cache import Progress
from converters.errors import ConversionError, SourceRefused
from converters.proof.checks import Check
from converters.proof.closeness import Closeness
from converters.proof.reference import Feed, Reference
from converters.proof.runner import OpenRunner, onnx_runner
from converters.proof.tolerance import Tolerance, tolerance
from modelspec.golden import Golden
from modelspec.layout import ENGINE_FILE

if TYPE_CHECKING:
    import torch

Eager = Callable[[Feed], object]
LAYER_SAMPLES = 12


@dataclass(frozen=True)
class ConversionRequest:
    """What to convert: ``source`` as the user wrote it (a path or ``module:factory``), the
    pipeline's ``name``, and ``samples``, a file of real inputs (None: the task's own small set).
    ``options`` are what the user must say because the source does not (``missing``: ``-999``)."""

    name: str
    source: str
    samples: Path | None = None
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TorchModule:
    """A module with positional inputs, in evaluation mode: an ``example`` of each input by its
    name, of two rows, the axes that may have any length in all of them, and the outputs' names."""

    module: "torch.nn.Module"
    example: "Mapping[str, torch.Tensor]"
    open_axes: tuple[int, ...]
    outputs: tuple[str, ...]


class Task(ABC):
    """One kind of model, opened on one source.

    Opening checks the source and the samples; SourceMissing or SourceRefused says what is wrong and
    what to do. Everything after ``ask`` needs only the ``Reference``, so that a cached conversion
    is proved and published without loading the original again.
    """

    name: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]] = (
        "fp32",
        "fp16",
        "int8-weight-only",
        "int8-static",
        "int8-per-row",
        "int8-dynamic",
    )

    # The ``ConversionRequest.options`` that it accepts, besides ``base``, which ``sources.lora``
    # reads.
    options: ClassVar[tuple[str, ...]] = ()
    auto_class: ClassVar[str] = ""  # the AutoModel class of transformers for the task
    graph_file: ClassVar[str] = ENGINE_FILE  # what ``export`` writes, and its name when served
    # Why a proof compares no layers, where ``tests_graphs`` is False.
    not_compared: ClassVar[str] = "this kind of model has none that are rounded"

    def __init__(self, request: ConversionRequest) -> None:
        self.request = request
        unknown = [name for name in request.options if name not in (*self.options, "base")]
        if unknown:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in unknown)
            raise SourceRefused(f"{self.name} does not accept {flags}: leave it out")

    def offered(self) -> tuple[str, ...]:
        """The precisions that this source can be converted to, the default first."""
        return self.precisions

    def tolerance(self, precision: str) -> Tolerance:
        """How far answers in this precision may be from the original's: the limits that
        ``proof.tolerance`` lists under the task's name."""
        return tolerance(self.name, precision)

    @abstractmethod
    def files(self) -> list[Path]:
        """The files that determine the model's answers (and, with the samples, the cache key)."""

    def settings(self) -> str:
        """Anything else that determines them: versions of packages, the text of the samples."""
        return ""

    @abstractmethod
    def metadata(self) -> dict[str, Any]:
        """What the pipeline's declaration needs, in JSON types: labels, buckets, sizes."""

    def write_steps(self, folder: Path) -> None:  # noqa: B027 - a pipeline may have no steps
        """Write the files of the pipeline's steps: ``folder/pre/...`` for ``NAME_pre``'s version
        folder, ``folder/post/...`` for ``NAME_post``'s. Both folders exist."""

    @abstractmethod
    def export(self, target: Path) -> None:
        """Write the FP32 graph, with a dynamic batch axis; ExportFailed says why it failed."""

    def write_precision(
        self, precision: str, source: Path, target: Path, reference: Reference
    ) -> None:
        """Write ``target`` in this precision from what ``export`` wrote; ExportFailed says why it
        failed."""
        from converters.precisions.write import write_precision

        write_precision(precision, source, target, lambda: self.calibration(reference))

    @abstractmethod
    def ask(self, folder: Path, report: Progress) -> dict[str, np.ndarray]:
        """The answers of the original framework, in a process of its own, to the samples; also the
        samples, unless they are files in ``folder/samples``. No object arrays."""

    @abstractmethod
    def feeds(self, reference: Reference) -> Iterator[Feed]:
        """The samples as inputs of the graph, at most a few hundred: used for calibration."""

    @abstractmethod
    def prove_graph(
        self, engine: Path, reference: Reference, runner: OpenRunner = onnx_runner
    ) -> list[Check]:
        """The checks of the graph alone, opened by ``runner``, within ``reference.tolerance``:
        parity, the task's metric, batch and padding invariance, dynamic axes, NaN, determinism."""

    @abstractmethod
    def golden(self, reference: Reference) -> Golden:
        """One sample and the original's answer, which ``/readyz`` checks from then on."""

    @abstractmethod
    def prove_served(self, address: str, reference: Reference) -> list[Check]:
        """Send the same samples, raw, to the pipeline that Triton serves at this gRPC address."""

    reference_packages: ClassVar[tuple[str, ...]] = ()  # see ``packages``

    def packages(self) -> tuple[str, ...]:
        """What computes the original's answers besides ``cache.TOOLS``: the versions are recorded,
        and others make another conversion."""
        return self.reference_packages

    def layer_feeds(self, reference: Reference) -> Iterator[Feed]:
        """A few samples on which the layers are compared."""
        return islice(self.feeds(reference), LAYER_SAMPLES)

    def calibration(self, reference: Reference) -> Iterator[Feed]:
        """The samples for measuring 8-bit scales; SourceRefused if they say nothing about the range
        of real inputs."""
        return self.feeds(reference)

    def exercised(self, reference: Reference) -> list[str]:
        """What the samples reached of the model, in readable lines: how many there are and whose,
        how much the original's answers vary, how many were clear, what no sample reached."""
        return [self.whose(len(next(iter(reference.outputs.values()))))]

    def whose(self, samples: int) -> str:
        """The first of these lines."""
        return f"{samples} samples, " + (
            f"yours ({self.request.samples.name})" if self.request.samples else "the task's own set"
        )

    # For ``converters.proof.self_test``: would a broken graph be detected?

    tests_graphs: ClassVar[bool] = True  # False if no layer could be skipped: trees
    has_mask: ClassVar[bool] = False  # whether the graph has an attention mask

    def self_test(self, engine: Path, reference: Reference, precision: str) -> list[Check]:
        """Whether the proof would detect a broken ``engine``: one check, or none."""
        from converters.proof.self_test import graph_self_test

        return [graph_self_test(self, reference, precision)] if self.tests_graphs else []

    def few(self, reference: Reference, rows: int) -> Reference:
        """The reference with only about ``rows`` of its samples."""
        return reference

    def parity_checks(self, engine: Path, reference: Reference) -> list[Check]:
        """The checks of ``prove_graph`` that compare with the original's answers."""
        return self.prove_graph(engine, reference)

    def mask_checks(self, engine: Path, reference: Reference) -> list[Check]:
        """The checks of ``prove_graph`` that padding does not change the answers."""
        return []

    def table_checks(self, graph: Path, reference: Reference) -> list[Check]:
        """The checks of what no sample reaches in the FP32 ``graph``: large tables, row by row."""
        return []

    # For ``--engine torch``, in addition.

    def torch_module(self) -> TorchModule | None:
        """The original as a module with the graph's inputs and outputs; None if it has none."""
        return None

    # For ``tidegate optimize``, in addition.

    def closeness(self, engine: Path, reference: Reference) -> Closeness:
        """The answers to the samples, one by one, against the original's, by the task's metric."""
        raise ConversionError(f"{self.name} has no precisions to compare: it only supports fp32")

    def eager(self) -> Eager | None:
        """The original in its own framework, on the graph's inputs; None if it has none."""
        return None

    def timed_feed(self, reference: Reference, rows: int) -> Feed:
        """A batch of this many rows for timing, from samples of the same shape."""
        feeds = iter(self.feeds(reference))
        first = next(feeds)
        same_shape = [first, *(feed for feed in feeds if _shapes(feed) == _shapes(first))]
        chosen = [same_shape[row % len(same_shape)] for row in range(rows)]
        return {name: np.concatenate([feed[name] for feed in chosen]) for name in first}

    def more_samples(self, target: Path) -> Path | None:
        """Write more real samples than the task's own set to ``target``; None if there are no more,
        or if the samples are the user's."""
        return None

    def card(self) -> dict[str, Any]:
        """What a user should know about the model, for the endpoint's documentation."""
        return {"model": Path(self.request.source).name}


def _shapes(feed: Feed) -> dict[str, tuple[int, ...]]:
    return {name: values.shape for name, values in feed.items()}
