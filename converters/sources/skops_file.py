"""A skops file, loaded without running any code that it names."""

import contextlib
import importlib
import json
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from converters.errors import SourceRefused
from converters.sources.sklearn_boosters import TRUSTED as BOOSTER_CLASSES
from converters.sources.sklearn_bounds import first_invalid_part

# Whole libraries, but only their classes: a function that a file names is called with the file's
# data.
TRUSTED = ("sklearn.", "scipy.", "numpy.")
METRICS = "sklearn.metrics."
# Functions of these libraries that common estimators store with their data. They only compute.
FUNCTIONS = {
    *(
        f"sklearn.feature_selection._univariate_selection.{name}"
        for name in ("f_classif", "f_oneway", "f_regression", "r_regression", "chi2")
    ),
    *(
        f"sklearn.feature_selection._mutual_info.mutual_info_{name}"
        for name in ("classif", "regression")
    ),
    "sklearn.cluster._kmeans._kmeans_single_lloyd",
    "sklearn.cluster._kmeans._kmeans_single_elkan",
    "scipy._lib.array_api_compat.numpy._aliases.asarray",
    "scipy.special._ufuncs.expit",
    "scipy.special._ufuncs.logit",
}
# What such a model stores beside classes.
HISTOGRAM_CATEGORIES = {"functools.partial", "sklearn.utils.validation.check_array"}
# Python's own types, which make_column_selector(dtype_include=object) stores.
BUILTIN_CLASSES = {f"builtins.{name}" for name in ("object", "int", "float", "bool", "str")}
SCHEMA, SCHEMA_LIMIT_BYTES = "schema.json", 512 * 1024 * 1024


def load_skops(path: Path) -> tuple[Any, tuple[str, ...]]:
    """The object in the file, and scikit-learn's warnings about it; SourceRefused if the file is
    damaged or needs types other than those of scikit-learn, scipy, numpy, XGBoost and LightGBM."""
    with _without_estimators():
        import skops.io

    _check_schema(path)
    try:
        unknown = skops.io.get_untrusted_types(file=path)
    except Exception as error:  # a damaged file can raise anything
        raise SourceRefused(
            f"{path} is not a model that skops can read: {_one_line(error)}"
        ) from error
    refused = [name for name in unknown if not _is_library_class(name)]
    if set(refused) == HISTOGRAM_CATEGORIES:
        raise SourceRefused(
            f"{path} holds a HistGradientBoosting model with splits on categories "
            "(categorical_features=), which has no converter: one-hot encode those columns, set "
            "categorical_features=None, or train with LightGBM"
        )
    if refused:
        raise SourceRefused(
            f"{path} holds {', '.join(sorted(refused)[:5])}, which is not a class of scikit-learn, "
            "numpy, scipy, XGBoost or LightGBM, and no other code is run: train the model "
            "without it, or export it yourself to ONNX (--task tensors)"
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            loaded = skops.io.load(path, trusted=unknown)
        except Exception as error:
            raise SourceRefused(_load_failure(path, error)) from error
    invalid_part = first_invalid_part(loaded)
    if invalid_part:
        raise SourceRefused(
            f"{path} is damaged or malicious: a {invalid_part} in it points outside itself. Save "
            "the model again from where it was trained"
        )
    return loaded, tuple(dict.fromkeys(_one_line(warning.message) for warning in caught))


@contextlib.contextmanager
def _without_estimators() -> Iterator[None]:
    """skops asks scikit-learn for all its estimators, to trust them, which imports all its packages
    and even torch: seconds in each process that opens a file. Here ``_is_library_class`` decides
    whom to trust."""
    import sklearn.utils

    all_estimators = sklearn.utils.all_estimators
    sklearn.utils.all_estimators = list
    try:
        yield
    finally:
        sklearn.utils.all_estimators = all_estimators


def _check_schema(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(SCHEMA).file_size > SCHEMA_LIMIT_BYTES:
                raise SourceRefused(f"{path}: its {SCHEMA} is over {SCHEMA_LIMIT_BYTES} bytes")
            broken = archive.testzip()
            json.loads(archive.read(SCHEMA))
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, EOFError, RecursionError) as error:
        raise SourceRefused(
            f"{path} is truncated, or not a skops file ({_one_line(error)}): save the model again "
            "with skops.io.dump"
        ) from error
    if broken:
        raise SourceRefused(f"{path} is damaged at {broken!r}: copy it again")


def _is_library_class(name: str) -> bool:
    if name in FUNCTIONS or name in BOOSTER_CLASSES or name in BUILTIN_CLASSES:
        return True
    if not name.startswith(TRUSTED):
        return False
    module, _, attribute = name.rpartition(".")
    try:
        part = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        return False
    # A search keeps the metric that it was scored with; metrics only compute.
    is_metric = name.startswith(METRICS) and getattr(part, "__module__", "").startswith(METRICS)
    return isinstance(part, type) or is_metric


def _load_failure(path: Path, error: Exception) -> str:
    """The reason, with scikit-learn's version: a model saved with another version often fails in
    odd ways."""
    import sklearn

    return (
        f"{path} cannot be loaded with scikit-learn {sklearn.__version__} ({_one_line(error)}): it "
        "was probably saved with another version; save it again with this one, or install that one"
    )


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]
