"""A file with a tabular model, opened by the reader of the library that wrote it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.errors import SourceMissing, SourceRefused, no_traceback
from converters.sources.archive import require_no_bomb
from converters.sources.tabular_model import NO_OPTIONS, TabularModel

PICKLE_SUFFIXES = (".pkl", ".pickle", ".joblib", ".dill")
# A tabular model is trees or coefficients: the largest forest in use is far below this.
SIZE_LIMIT_BYTES = 4 * 1024**3


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
        if path.suffix.lower() == ".skops":
            from converters.sources.sklearn_model import open_skops

            return open_skops(path)
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
