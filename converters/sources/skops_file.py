"""A skops file, opened without running anything that it holds."""

import contextlib
import importlib
import json
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from converters.errors import SourceRefused
from converters.sources.sklearn_boosters import TRUSTED as BOOSTERS
from converters.sources.sklearn_bounds import first_lie

# Whole libraries, but only their classes: a function that a file names is called with its data.
TRUSTED = ("sklearn.", "scipy.", "numpy.")
# Functions of theirs that common estimators keep beside their data. They compute and do no more.
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
_ADAPTER = "sklearn.externals.array_api_compat.torch"
SCHEMA, SCHEMA_LIMIT_BYTES = "schema.json", 512 * 1024 * 1024


def load_skops(path: Path) -> tuple[Any, tuple[str, ...]]:
    """The object in the file, and what scikit-learn warns of it; SourceRefused when it is broken or
    needs types that are not scikit-learn's, scipy's or numpy's own."""
    with _torch_left_out():
        import skops.io

    _check_schema(path)
    try:
        unknown = skops.io.get_untrusted_types(file=path)
    except Exception as error:  # whatever a broken file makes it raise
        raise SourceRefused(f"{path} is no model that skops can read: {_short(error)}") from error
    refused = [name for name in unknown if not _is_library_class(name)]
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
            raise SourceRefused(_why(path, error)) from error
    lie = first_lie(loaded)
    if lie:
        raise SourceRefused(
            f"{path} is damaged or made to do harm: a {lie} in it points outside itself. Save the "
            "model again from where it was trained"
        )
    return loaded, tuple(dict.fromkeys(_short(each.message) for each in caught))


@contextlib.contextmanager
def _torch_left_out() -> Iterator[None]:
    """skops asks scikit-learn for all its estimators, which imports every package of it: the
    adapter for torch's arrays too, and so torch, seconds in each process that opens a file."""
    if _ADAPTER in sys.modules:
        yield
        return
    sys.modules[_ADAPTER] = None  # type: ignore[assignment] # Python's own sign for "not found"
    try:
        yield
    finally:
        del sys.modules[_ADAPTER]


def _check_schema(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(SCHEMA).file_size > SCHEMA_LIMIT_BYTES:
                raise SourceRefused(f"{path}: its {SCHEMA} is over {SCHEMA_LIMIT_BYTES} bytes")
            broken = archive.testzip()
            json.loads(archive.read(SCHEMA))
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, EOFError, RecursionError) as error:
        raise SourceRefused(
            f"{path} is cut off, or no skops file ({_short(error)}): save the model again with "
            "skops.io.dump"
        ) from error
    if broken:
        raise SourceRefused(f"{path} is damaged at {broken!r}: copy it again")


def _is_library_class(name: str) -> bool:
    if name in FUNCTIONS or name in BOOSTERS:
        return True
    if not name.startswith(TRUSTED):
        return False
    module, _, attribute = name.rpartition(".")
    try:
        return isinstance(getattr(importlib.import_module(module), attribute), type)
    except (ImportError, AttributeError):
        return False


def _why(path: Path, error: Exception) -> str:
    """The reason, with the versions: a model of another one often fails in odd ways."""
    import sklearn

    return (
        f"{path} cannot be loaded with scikit-learn {sklearn.__version__} ({_short(error)}): it "
        "was probably saved with another version; save it again with this one, or install that one"
    )


def _short(error: object) -> str:
    return " ".join(str(error).split())[:300]
