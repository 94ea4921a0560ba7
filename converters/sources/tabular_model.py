"""The interface of a trained model over named columns, whichever library trained it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import onnx

from converters.errors import SourceMissing, SourceRefused, no_traceback
from converters.export.trees2onnx import Tree
from converters.sources.archive import require_no_bomb
from converters.sources.table import Column, Table

NO_OPTIONS: Mapping[str, str] = MappingProxyType({})
PICKLE_SUFFIXES = (".pkl", ".pickle", ".joblib", ".dill")
# A tabular model is trees or coefficients: the largest forest in use is far below this.
SIZE_LIMIT_BYTES = 4 * 1024**3


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
    # Whether its output is more than rounding error for numbers far from its training data.
    far: bool = True
    # The columns of the graph's inputs, in this order; empty: one input takes all columns, stacked.
    order: tuple[str, ...] = ()
    # What a user should know: assumptions, another version that trained the model.
    remarks: tuple[str, ...] = ()

    @abstractmethod
    def answer(self, table: Table) -> np.ndarray:
        """The library's own prediction, FP64: probabilities [n, labels], or values [n, 1]."""

    def exact(self, table: Table) -> np.ndarray | None:
        """The same without what the library rounds off in FP32, FP64 [n, ...]; None if it computes
        in FP64 anyway, or cannot say."""
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


def open_model(path: Path, options: Mapping[str, str] = NO_OPTIONS) -> TabularModel:
    """Load the model in this file, whichever library wrote it; SourceMissing or SourceRefused.
    ``options`` are settings that the file does not hold, such as ``missing``."""
    if not path.is_file():
        raise SourceMissing(f"there is no file {path}: give a .skops, .json, .ubj or .txt model")
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise SourceRefused(
            f"{path} is a pickle, which runs any code that it holds when it is loaded: save a "
            "scikit-learn model with skops.io.dump(model, 'model.skops'), an XGBoost one with "
            "save_model('model.json'), a LightGBM one with booster_.save_model('model.txt')"
        )
    if path.stat().st_size > SIZE_LIMIT_BYTES:
        raise SourceRefused(
            f"{path} is over {SIZE_LIMIT_BYTES} bytes, which is too large for a tabular model"
        )
    require_no_bomb(path)
    model_class = _model_class(path)
    unsupported = [name for name in options if name not in model_class.options]
    if unsupported:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in unsupported)
        raise SourceRefused(f"{path} is a {model_class.library} model, which does not take {flags}")
    remedy = (
        "save it again with the versions of this environment, or install those it was saved with"
    )
    with no_traceback(SourceRefused, f"{path} cannot be read", remedy):
        model: TabularModel = (
            model_class(path, options) if model_class.options else model_class(path)
        )
    return model


def _model_class(path: Path) -> Any:
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
        f"{path} has an unknown suffix: use .skops (scikit-learn), .json or .ubj (XGBoost), .txt "
        "(LightGBM)"
    )
