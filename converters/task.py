"""What every kind of model must be able to do to be converted, proved and served.

A task is opened on one source. ``converters.conversion`` asks it for a graph, ``tidegate`` for the
pipeline's proof through Triton; neither knows what kind of model it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from converters.cache import Say
from converters.closeness import Closeness
from converters.errors import ConversionError, SourceRefused
from converters.proof import Check
from converters.runner import OpenRunner, onnx_runner
from converters.tolerance import Tolerance
from modelspec.golden import Golden

Metadata = Mapping[str, Any]
Answers = Mapping[str, np.ndarray]
Feed = Mapping[str, np.ndarray]
Eager = Callable[[Feed], object]
LAYER_SAMPLES = 12


@dataclass(frozen=True)
class ConversionRequest:
    """What is to be converted: ``source`` as the user wrote it (a path, ``module:factory``), the
    pipeline's ``name`` and ``samples``, a file of real inputs (None: the task's own small set).
    ``options`` are what the source does not say and the user does (``missing``: ``-999``)."""

    name: str
    source: str
    samples: Path | None = None
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """An original that has answered. ``folder`` holds what the pipeline's steps need (``pre/``,
    ``post/``) and whatever ``Task.ask`` left there; ``answers`` is what it returned."""

    name: str
    folder: Path
    metadata: Metadata
    answers: Answers
    tolerance: Tolerance


class Task(ABC):
    """One kind of model, opened on one source.

    Opening checks the source and the samples: SourceMissing or SourceRefused says what is wrong and
    what to do. Everything after ``ask`` works from the ``Reference`` alone, so that a conversion
    in the cache is proved and published without loading the original again.
    """

    name: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]] = (
        "fp32",
        "fp16",
        "w8",
        "int8",
        "int8-rows",
        "int8-dynamic",
    )

    # The ``ConversionRequest.options`` that it takes, besides ``base``, which ``sources.lora`` has
    # read.
    options: ClassVar[tuple[str, ...]] = ()
    auto_class: ClassVar[str] = ""  # transformers' own for the task

    def __init__(self, request: ConversionRequest) -> None:
        self.request = request
        strange = [name for name in request.options if name not in (*self.options, "base")]
        if strange:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in strange)
            raise SourceRefused(f"{self.name} takes no {flags}: leave it out")

    @abstractmethod
    def files(self) -> list[Path]:
        """The files that decide what the model answers (and, with the samples, the cache's key)."""

    def settings(self) -> str:
        """Anything else that decides it: the versions of packages, the text of the samples."""
        return ""

    @abstractmethod
    def metadata(self) -> dict[str, Any]:
        """What the pipeline is declared with, as JSON has it: labels, buckets, sizes."""

    def write_steps(self, folder: Path) -> None:  # noqa: B027 - a pipeline may have no steps
        """Write the files of the pipeline's steps: ``folder/pre/...`` for ``NAME_pre``'s version
        folder, ``folder/post/...`` for ``NAME_post``'s. The folders are there already."""

    @abstractmethod
    def export(self, target: Path) -> None:
        """Write the FP32 graph, its batch axis dynamic; ExportFailed says why it cannot be."""

    @abstractmethod
    def ask(self, folder: Path, say: Say) -> dict[str, np.ndarray]:
        """What the original framework, in a process of its own, answers to the samples; the samples
        too, unless they are kept as files in ``folder/samples``. No object arrays."""

    @abstractmethod
    def feeds(self, reference: Reference) -> Iterator[Feed]:
        """The samples as the graph's inputs, at most a few hundred: what is calibrated on."""

    @abstractmethod
    def prove_graph(
        self, engine: Path, reference: Reference, runner: OpenRunner = onnx_runner
    ) -> list[Check]:
        """Parity, the task's own metric, batch and padding invariance, dynamic axes, NaN,
        determinism: of the graph alone, opened by ``runner``, within ``reference.tolerance``."""

    @abstractmethod
    def golden(self, reference: Reference) -> Golden:
        """One sample and the original's answer: what ``/readyz`` asks for ever after."""

    @abstractmethod
    def prove_served(self, address: str, reference: Reference) -> list[Check]:
        """The same samples, raw, to the pipeline that a Triton serves at this gRPC address."""

    oracle_packages: ClassVar[tuple[str, ...]] = ()  # besides cache.TOOLS, whose versions count

    def layer_feeds(self, reference: Reference) -> Iterator[Feed]:
        """A few samples that each layer is compared on."""
        return islice(self.feeds(reference), LAYER_SAMPLES)

    def calibration(self, reference: Reference) -> Iterator[Feed]:
        """What 8-bit scales are measured on; SourceRefused where the samples say nothing of the
        range that real inputs have."""
        return self.feeds(reference)

    def exercised(self, reference: Reference) -> list[str]:
        """What the samples reached of the model, a line each, for people: how many and whose they
        are, how far the original's answers lie apart, how many were clear, what none reached."""
        return [self.whose(len(next(iter(reference.answers.values()))))]

    def whose(self, samples: int) -> str:
        """The first such line."""
        return f"{samples} samples, " + (
            f"yours ({self.request.samples.name})" if self.request.samples else "the task's own set"
        )

    # What the self-test asks (``converters.self_test``): whether a broken graph would be seen.

    tests_graphs: ClassVar[bool] = True  # False where no layer could be skipped: trees
    has_mask: ClassVar[bool] = False  # whether the graph is told what is padding

    def few(self, reference: Reference, rows: int) -> Reference:
        """The case with some of its samples only, about ``rows``."""
        return reference

    def parity_checks(self, engine: Path, reference: Reference) -> list[Check]:
        """Of ``prove_graph`` those checks that compare with the original's answers."""
        return self.prove_graph(engine, reference)

    def mask_checks(self, engine: Path, reference: Reference) -> list[Check]:
        """Of ``prove_graph`` those that padding must not change."""
        return []

    # What ``tidegate optimize`` asks, beside the above.

    def closeness(self, engine: Path, reference: Reference) -> Closeness:
        """The samples, one at a time, against the original's answers, by the task's own metric."""
        raise ConversionError(f"{self.name} has no precisions to compare: fp32 is its only form")

    def eager(self) -> Eager | None:
        """The original in its own framework, on the graph's inputs; None where it has none."""
        return None

    def timed_feed(self, reference: Reference, rows: int) -> Feed:
        """A batch of this many rows to take the time with: samples of one shape."""
        feeds = iter(self.feeds(reference))
        first = next(feeds)
        alike = [first, *(feed for feed in feeds if _shapes(feed) == _shapes(first))]
        chosen = [alike[row % len(alike)] for row in range(rows)]
        return {name: np.concatenate([feed[name] for feed in chosen]) for name in first}

    def more_samples(self, target: Path) -> Path | None:
        """More real samples than the task's own set, written to ``target``; None if the set is all
        there is, or the user brought one."""
        return None

    def card(self) -> dict[str, Any]:
        """What a user should know of the model: shown in the endpoint's documentation."""
        return {"model": Path(self.request.source).name}


def _shapes(feed: Feed) -> dict[str, tuple[int, ...]]:
    return {name: values.shape for name, values in feed.items()}
