"""What a trained model on a table must be able to say, whichever library trained it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import onnx

from converters.errors import SourceMissing, SourceRefused, no_traceback
from converters.sources.archive import require_no_bomb
from converters.tabular.table import Column, Table
from converters.tabular.trees2onnx import Tree

NOTHING: Mapping[str, str] = MappingProxyType({})
PICKLES = (".pkl", ".pickle", ".joblib", ".dill")
# A table's model is trees or coefficients: the largest forest in use is far below this.
SIZE_LIMIT_BYTES = 4 * 1024**3


@dataclass(frozen=True)
class Forest:
    """The trees at a model's end and the ``numbers`` FP64 [n, features] that they decide on;
    ``direct``: these are the model's columns as they are."""

    trees: Sequence[Tree]
    numbers: np.ndarray
    direct: bool


class TabularModel(ABC):
    """A model opened from a file. ``labels`` are a classifier's classes as text; a regressor has
    none. ``number`` is the V2 name of the type that the library computes its inputs in."""

    library: ClassVar[str]
    number: ClassVar[str] = "FP64"
    # What may be said of a model that its file does not hold (``ConversionRequest.options``).
    options: ClassVar[tuple[str, ...]] = ()

    columns: tuple[Column, ...]
    labels: tuple[str, ...]
    # Whether its answer jumps where a number passes a threshold, and nowhere else.
    steps: bool = True
    # Whether its answer to numbers far from all that it was trained on is more than rounding.
    far: bool = True
    # The columns that the graph's inputs are, in this order; none: one input takes all, stacked.
    order: tuple[str, ...] = ()
    # What a user should hear: what was taken for granted, another version that trained it.
    remarks: tuple[str, ...] = ()

    @abstractmethod
    def answer(self, table: Table) -> np.ndarray:
        """The library's own answer, FP64: probabilities [n, labels], or values [n, 1]."""

    def exact(self, table: Table) -> np.ndarray | None:
        """The same without what the library rounds off in FP32, FP64 [n, ...]; None where it
        computes in FP64 anyway, or cannot say."""
        return None

    @abstractmethod
    def decide(self, table: Table) -> np.ndarray:
        """The place in ``labels`` of the class that the library predicts, INT64 [n]."""

    @abstractmethod
    def graph(self) -> onnx.ModelProto:
        """One output [n, labels] or [n, 1]. The inputs are the columns in ``order``, each [n, 1],
        or one input with all of them, [n, columns], all of them numbers."""

    def thresholds(self) -> Mapping[str, np.ndarray]:
        """The numbers at which the model's trees part a column, where they can be read off."""
        return {}

    def forest(self, table: Table) -> Forest | None:
        """The model's trees with what these rows are to them; None where it has none."""
        return None

    def text_parts(self) -> Sequence[tuple[str, Any]]:
        """(column, vectorizer) for each of scikit-learn's vectorizers that read texts."""
        return ()

    def direct(self, column: Column) -> bool:
        """Whether anything but a vectorizer reads this column."""
        return True

    def is_free_text(self, column: Column) -> bool:
        """Whether a vectorizer without a vocabulary reads this column."""
        return False

    def vocabulary_notes(self, table: Table) -> Sequence[str]:
        """Which words of its vocabularies these rows have, and which they have not."""
        return ()

    def marks(self) -> Mapping[str, Sequence[float]]:
        """Numbers of a column that mean something of their own: each is asked about."""
        return {}


def open_model(path: Path, options: Mapping[str, str] = NOTHING) -> TabularModel:
    """The model in this file, whichever library wrote it; SourceMissing or SourceRefused.
    ``options`` are what its file does not hold, such as ``missing``."""
    if not path.is_file():
        raise SourceMissing(f"there is no file {path}: give a .skops, .json, .ubj or .txt model")
    if path.suffix.lower() in PICKLES:
        raise SourceRefused(
            f"{path} is a pickle, which runs whatever code it holds when it is opened: save a "
            "scikit-learn model with skops.io.dump(model, 'model.skops'), an XGBoost one with "
            "save_model('model.json'), a LightGBM one with booster_.save_model('model.txt')"
        )
    if path.stat().st_size > SIZE_LIMIT_BYTES:
        raise SourceRefused(f"{path} is over {SIZE_LIMIT_BYTES} bytes: that is no model of a table")
    require_no_bomb(path)
    opener = _opener(path)
    strange = [name for name in options if name not in opener.options]
    if strange:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in strange)
        raise SourceRefused(f"{path} is a model of {opener.library}, which knows no {flags}")
    todo = "save it again with the versions of this environment, or install those it was saved with"
    with no_traceback(SourceRefused, f"{path} cannot be read", todo):
        found: TabularModel = opener(path, options) if opener.options else opener(path)
    return found


def _opener(path: Path) -> Any:
    match path.suffix.lower():
        case ".skops":
            from converters.sources.sklearn_model import SklearnModel

            return SklearnModel
        case ".json" | ".ubj":
            from converters.sources.xgboost_model import XgboostModel

            return XgboostModel
        case ".txt":
            from converters.sources.lightgbm_model import LightgbmModel

            return LightgbmModel
    raise SourceRefused(
        f"{path} has no ending that is known: .skops (scikit-learn), .json or .ubj (XGBoost), .txt "
        "(LightGBM)"
    )
