"""The interface of a trained model over named columns, whichever library trained it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import onnx

from converters.export.trees2onnx import Tree
from converters.table import Column, Table

NO_OPTIONS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Forest:
    """The trees at a model's end and their input ``numbers`` FP64 [n, features]; ``direct``: these
    are the model's columns unchanged."""

    trees: Sequence[Tree]
    numbers: np.ndarray
    direct: bool


class TabularModel(ABC):
    """A model loaded from a file. ``labels`` are a classifier's classes as text, empty for a
    regressor. ``number`` is the V2 datatype in which the library reads its inputs."""

    library: ClassVar[str]
    number: ClassVar[str] = "FP64"
    # The settings that the file does not hold (``ConversionRequest.options``).
    options: ClassVar[tuple[str, ...]] = ()

    columns: tuple[Column, ...]
    labels: tuple[str, ...]
    # Whether its output jumps where a number passes a threshold, and nowhere else.
    steps: bool = True
    # Whether it rounds before it compares with a threshold, so that a number within rounding error
    # of one has no side that two libraries agree on.
    rounds: bool = False
    # Whether its output is more than rounding error for numbers far from its training data.
    far: bool = True
    # The columns of the graph's inputs, in this order; empty: one input takes all columns, stacked.
    order: tuple[str, ...] = ()
    # What a user should know: assumptions, another version that trained the model.
    remarks: tuple[str, ...] = ()

    @abstractmethod
    def scores(self, table: Table) -> np.ndarray:
        """The library's own prediction, FP64: probabilities [n, labels], or values [n, 1]."""

    def exact(self, table: Table) -> np.ndarray | None:
        """The same without what the library rounds off in FP32, FP64 [n, ...]; None if it computes
        in FP64 anyway, or cannot say."""
        return None

    def moved(self, table: Table, by: np.ndarray) -> np.ndarray | None:
        """The prediction if what the last step reads were off by the factors ``by`` FP64 [k], in
        turn, FP64 [n, ...]; None if nothing precedes it, or if it reads texts."""
        return None

    @abstractmethod
    def decide(self, table: Table) -> np.ndarray:
        """The index in ``labels`` of the class that the library predicts, INT64 [n]."""

    @abstractmethod
    def graph(self) -> onnx.ModelProto:
        """The model's graph, with one output [n, labels] or [n, 1]. The inputs are the columns in
        ``order``, each [n, 1], or one input with all of them, [n, columns], all of them numbers."""

    def thresholds(self) -> Mapping[str, np.ndarray]:
        """The numbers at which the model's trees split a column, by the column's name, where they
        are known."""
        return {}

    def forest(self, table: Table) -> Forest | None:
        """The model's trees with their inputs for these rows; None if it has none."""
        return None

    def text_parts(self) -> Sequence[tuple[str, Any]]:
        """(column, vectorizer) for each of scikit-learn's text vectorizers."""
        return ()

    def direct(self, column: Column) -> bool:
        """Whether anything but a vectorizer reads this column."""
        return True

    def is_free_text(self, column: Column) -> bool:
        """Whether a vectorizer without a vocabulary reads this column."""
        return False

    def vocabulary_notes(self, table: Table) -> Sequence[str]:
        """Which words of its vocabularies these rows contain, and which they do not."""
        return ()

    def marks(self) -> Mapping[str, Sequence[float]]:
        """Numbers with a special meaning, by the column's name: each is tested."""
        return {}
