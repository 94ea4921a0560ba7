"""What every kind of model must be able to do to be converted, proved and served.

A task is opened on one source. ``converters.conversion`` asks it for a graph, ``tidegate`` for the
pipeline's proof through Triton; neither knows what kind of model it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from converters.cache import Say
from converters.proof import Check
from converters.runner import OpenRunner, onnx_runner
from converters.tolerance import Tolerance
from modelspec.face import Golden

Facts = Mapping[str, Any]
Answers = Mapping[str, np.ndarray]
Feed = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Order:
    """What is to be converted: ``source`` as the user wrote it (a path, ``module:factory``), the
    pipeline's ``name`` and ``samples``, a file of real inputs (None: the task's own small set)."""

    name: str
    source: str
    samples: Path | None = None


@dataclass(frozen=True)
class Case:
    """An original that has answered. ``folder`` holds what the pipeline's steps need (``pre/``,
    ``post/``) and whatever ``Task.ask`` left there; ``answers`` is what it returned."""

    name: str
    folder: Path
    facts: Facts
    answers: Answers
    tolerance: Tolerance


class Task(ABC):
    """One kind of model, opened on one source.

    Opening checks the source and the samples: SourceMissing or SourceRefused says what is wrong and
    what to do. Everything after ``ask`` works from the ``Case`` alone, so that a conversion in the
    cache is proved and published without loading the original again.
    """

    name: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16", "w8", "int8", "int8-dynamic")

    def __init__(self, order: Order) -> None:
        self.order = order

    @abstractmethod
    def files(self) -> list[Path]:
        """The files that decide what the model answers (and, with the samples, the cache's key)."""

    def settings(self) -> str:
        """Anything else that decides it: the versions of packages, the text of the samples."""
        return ""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
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
    def feeds(self, case: Case) -> Iterator[Feed]:
        """The samples as the graph's inputs, at most a few hundred: what is calibrated on."""

    @abstractmethod
    def prove_graph(
        self, engine: Path, case: Case, runner: OpenRunner = onnx_runner
    ) -> list[Check]:
        """Parity, the task's own metric, batch and padding invariance, dynamic axes, NaN,
        determinism: of the graph alone, opened by ``runner``, within ``case.tolerance``."""

    @abstractmethod
    def golden(self, case: Case) -> Golden:
        """One sample and the original's answer: what ``/readyz`` asks for ever after."""

    @abstractmethod
    def prove_served(self, address: str, case: Case) -> list[Check]:
        """The same samples, raw, to the pipeline that a Triton serves at this gRPC address."""

    def card(self) -> dict[str, Any]:
        """What a user should know of the model: shown in the endpoint's documentation."""
        return {"model": Path(self.order.source).name}
