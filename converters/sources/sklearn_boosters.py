"""XGBoost's and LightGBM's own estimators inside a scikit-learn pipeline.

Each is written in its library's format and read back, so that the same code reads it and a
standalone file. What no such file holds (``missing``, the best iteration) comes from the estimator.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from converters.errors import SourceRefused
from converters.sources.lightgbm_model import LightgbmModel
from converters.sources.xgboost_model import XgboostModel

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
