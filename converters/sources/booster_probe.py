"""Load a booster's file in a process of its own: XGBoost and LightGBM trust the lengths and node
numbers in it, and a damaged file can crash them. Then only this process dies.

    python -m converters.sources.booster_probe MODEL
"""

import contextlib
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np

from converters.errors import SourceRefused
from converters.offline import OFFLINE

TIMEOUT_S = 300.0
SUFFIXES = (".json", ".ubj", ".txt")


def require_loadable(path: Path) -> None:
    """SourceRefused if loading the file, or predicting one row with it, crashes its library. An
    error that the library reports is left to the reader, which knows more about it."""
    if path.suffix.lower() in SUFFIXES and path.is_file():
        _require_loadable(path, path.stat().st_mtime_ns)


@cache
def _require_loadable(path: Path, _modified_ns: int) -> None:
    command = [sys.executable, "-m", "converters.sources.booster_probe", str(path)]
    try:
        run = subprocess.run(
            command, capture_output=True, env=OFFLINE, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise SourceRefused(
            f"{path} takes over {TIMEOUT_S:.0f} s to load: save it again, or with fewer trees"
        ) from None
    if run.returncode < 0:
        raise SourceRefused(
            f"{path} is damaged: it crashes the library that reads it (signal {-run.returncode}). "
            "Copy it again, or save it again from where it was trained"
        )


def main(path: str) -> None:
    with contextlib.suppress(Exception):  # the reader meets it again, and explains it
        _load_and_predict(path)
    os._exit(0)


def _load_and_predict(path: str) -> None:
    if path.lower().endswith(".txt"):
        import lightgbm

        text = Path(path).read_text(encoding="utf-8")
        if text.startswith("tree\n") and "\nend of trees\n" in text:  # else the reader refuses it
            model = lightgbm.Booster(model_str=text)
            model.dump_model()
            model.predict(np.zeros((1, model.num_feature())), num_threads=1)
        return
    import xgboost

    booster = xgboost.Booster(model_file=path)
    booster.set_param({"nthread": 1})
    booster.save_raw("json")
    booster.inplace_predict(np.zeros((1, booster.num_features())), validate_features=False)


if __name__ == "__main__":
    main(sys.argv[1])
