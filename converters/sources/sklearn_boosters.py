"""XGBoost's and LightGBM's own estimators inside a scikit-learn pipeline.

Each is written in its library's format and read back, so that the same code reads it and a
standalone file. What no such file holds (``missing``, the best iteration) comes from the estimator.
"""

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from converters.errors import SourceRefused
from converters.sources.lightgbm_model import LightgbmModel
from converters.sources.xgboost_model import XgboostModel
from converters.table import Table

XGBOOST = ("XGBClassifier", "XGBRegressor", "XGBRanker", "XGBRFClassifier", "XGBRFRegressor")
LIGHTGBM = ("LGBMClassifier", "LGBMRegressor", "LGBMRanker")
# The types that a file with such a model holds beside scikit-learn's.
TRUSTED = {
    "xgboost.core.Booster",
    "lightgbm.basic.Booster",
    "collections.OrderedDict",
    "collections.defaultdict",
    *(f"xgboost.sklearn.{name}" for name in XGBOOST),
    *(f"lightgbm.sklearn.{name}" for name in LIGHTGBM),
}


def is_booster(model: Any) -> bool:
    """Whether the model is one of these libraries' estimators."""
    model_class = type(model)
    return (
        f"{model_class.__module__}.{model_class.__name__}" in TRUSTED
        and model_class.__name__ != "Booster"
    )


def booster_model(model: Any) -> XgboostModel | LightgbmModel:
    """The fitted estimator, read from its library's own file format; SourceRefused for what is not
    converted from such a file either."""
    name = type(model).__name__
    if name in LIGHTGBM and getattr(model, "_other_params", {}).get("pred_early_stop"):
        raise SourceRefused(
            f"the {name} in it predicts with pred_early_stop, which skips trees row by row and "
            "has no converter: train it without"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / (f"{name}.ubj" if name in XGBOOST else f"{name}.txt")
        try:
            if name in LIGHTGBM:
                model.booster_.save_model(str(path))
                return LightgbmModel(path)
            model.save_model(str(path))
            return XgboostModel(path, {"missing": repr(float(model.missing))})
        except SourceRefused as error:
            raise SourceRefused(str(error).replace(str(path), f"the {name} in it")) from error


class CategoricalLightgbm(LightgbmModel):
    """A LightGBM estimator that splits on categories: its library's own file says which columns
    have them, and the original is the estimator's own prediction."""

    def __init__(self, path: Path, estimator: Any, saved: Path) -> None:
        super().__init__(saved)
        self.path, self._estimator = path, estimator
        if self.labels:
            self.labels = tuple(map(str, estimator.classes_))

    def scores(self, table: Table) -> np.ndarray:
        predict = self._estimator.predict_proba if self.labels else self._estimator.predict
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # rows without names, as it was trained
            predicted = predict(self._library_rows(table), num_threads=1)
        return np.asarray(predicted, dtype=np.float64).reshape(len(table), -1)


def categorical_model(path: Path, estimator: Any) -> LightgbmModel | XgboostModel | None:
    """The model in the skops file ``path``, if it is a single booster that splits on categories:
    only its library's file says what its columns hold. None for any other."""
    last = estimator
    while hasattr(last, "steps"):
        steps = [step for _, step in last.steps if step not in (None, "passthrough")]
        if len(steps) != 1:
            return None
        last = steps[0]
    if not is_booster(last) or not _has_categories(booster_model(last)):
        return None
    if isinstance(model := booster_model(last), XgboostModel):
        model.path = path
        return model
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "model.txt"
        last.booster_.save_model(str(saved))
        return CategoricalLightgbm(path, last, saved)


def require_no_categories(booster: Any, model: LightgbmModel | XgboostModel) -> None:
    """SourceRefused if ``booster``, read as ``model``, is one part of another model and splits on
    categories."""
    if _has_categories(model):
        raise SourceRefused(
            f"the {type(booster).__name__} in it splits on categories (columns of pandas' "
            "type category, categorical_feature= or enable_categorical=), which has a converter "
            "only where the booster is the whole model: save it by itself, trained on the table's "
            "own columns, or put a OneHotEncoder before it instead"
        )


def _has_categories(model: LightgbmModel | XgboostModel) -> bool:
    return bool(model.categories or model.codes)


def boosters_in(model: Any) -> Iterator[Any]:
    """Yield the model if it is a booster, and each booster in its pipelines, at any depth."""
    if is_booster(model):
        yield model
    for _, step in getattr(model, "steps", ()):
        yield from boosters_in(step)


def booster_classes() -> Iterator[tuple[type, bool]]:
    """Yield the classes of the installed libraries, and whether each is a classifier."""
    for package, names in (("xgboost", XGBOOST), ("lightgbm", LIGHTGBM)):
        try:
            library = __import__(package)
        except ImportError:
            continue
        for name in names:
            yield getattr(library, name), name.endswith("Classifier")
