"""Splits on categories inside LightGBM and XGBoost: served as the library answers, for categories
that it knows, that it does not, and that are missing."""

import warnings

import numpy as np
import pandas as pd
import pytest

from converters.errors import SourceRefused
from converters.tabular.table import MISSING
from tests.tables_in_process import built, failed, opened, served

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightgbm
    import xgboost

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
DRAW = np.random.default_rng(8)
COUNT = 600
TOWNS = np.array(["Ulm", "Koeln", "Bonn", "Jena", "Kiel", "Trier", "Hof", "Gera", "Celle", "Suhl"])
TOWN, ZONE = DRAW.integers(0, 10, COUNT), DRAW.integers(0, 7, COUNT)
SIZE = DRAW.normal(size=COUNT)
VALUES = (
    np.isin(TOWN, [1, 4, 6]) * 3.0
    + np.isin(ZONE, [0, 5]) * (SIZE > 0) * 2
    + SIZE
    + DRAW.normal(size=COUNT) * 0.2
)
TWO, THREE = (VALUES > 1.5).astype(int), np.digitize(VALUES, [0, 2])
ZONES = ZONE * 10 + 5
LGBM = {"n_estimators": 12, "verbose": -1, "n_jobs": 1, "min_child_samples": 5, "cat_smooth": 1}
LGBM |= {"min_data_per_group": 5, "max_cat_to_onehot": 3}
XGB = {"n_estimators": 12, "n_jobs": 1, "enable_categorical": True, "max_depth": 4}
NAMES = ("town", "zone", "size")


def _frame(*, gone=0.0):
    holes = np.random.default_rng(2).random(COUNT) < gone
    towns = [None if hole else town for hole, town in zip(holes, TOWNS[TOWN], strict=True)]
    return pd.DataFrame(
        {
            "town": pd.Categorical(towns, categories=sorted(TOWNS)),
            "zone": pd.Categorical(ZONES),
            "size": SIZE,
        }
    )


MODELS = {
    "lightgbm": (lightgbm.LGBMRegressor(**LGBM), VALUES),
    "lightgbm, one category against the rest": (
        lightgbm.LGBMRegressor(**{**LGBM, "max_cat_to_onehot": 99}),
        VALUES,
    ),
    "lightgbm, three classes": (lightgbm.LGBMClassifier(**LGBM), THREE),
    "xgboost": (xgboost.XGBRegressor(**XGB), VALUES),
    "xgboost, sets": (xgboost.XGBRegressor(**XGB, max_cat_to_onehot=1), VALUES),
    "xgboost, two classes": (xgboost.XGBClassifier(**XGB), TWO),
    "xgboost, dart": (xgboost.XGBClassifier(booster="dart", rate_drop=0.3, **XGB), THREE),
}


def _saved(model, folder):
    if isinstance(model, lightgbm.LGBMModel):
        model.booster_.save_model(folder / "m.txt")
        return folder / "m.txt"
    model.save_model(folder / "m.json")
    return folder / "m.json"


def _answer(model, rows):
    ask = model.predict_proba if hasattr(model, "predict_proba") else model.predict
    return np.asarray(ask(rows)).reshape(len(rows), -1)


@pytest.mark.parametrize("gone", [0.0, 0.1])
@pytest.mark.parametrize("name", MODELS)
def test_categories_of_a_data_frame(tmp_path, name, gone):
    model, answers = MODELS[name]
    rows = _frame(gone=gone)
    path = _saved(model.fit(rows, answers), tmp_path)
    options = {} if path.suffix == ".txt" else {"missing": "nan"}
    task = opened(path, options)
    reference = built(task, tmp_path / "c")
    assert failed(task, reference) == []
    towns = rows["town"].astype(object).where(rows["town"].notna(), MISSING).to_numpy(np.str_)
    got = served(reference, {"town": towns, "zone": ZONES.astype(float), "size": SIZE})
    assert got == pytest.approx(_answer(model, rows), abs=1e-5)
    town = next(column for column in reference.metadata["columns"] if column["name"] == "town")
    assert sorted(town["categories"]) == sorted(TOWNS)
    assert town["open"] == (path.suffix == ".txt")


def test_categories_that_xgboost_itself_cuts_off_are_refused(tmp_path):
    rows = _frame().assign(town=pd.Categorical(np.char.replace(TOWNS[TOWN], "oe", "ö")))
    path = _saved(xgboost.XGBRegressor(**XGB).fit(rows, VALUES), tmp_path)
    with pytest.raises(SourceRefused, match="'town' wrongly, because they have letters beyond"):
        opened(path)


def test_lightgbm_takes_an_unknown_category_as_it_does_itself(tmp_path):
    model = lightgbm.LGBMRegressor(**LGBM).fit(_frame(), VALUES)
    task = opened(_saved(model, tmp_path))
    reference = built(task, tmp_path / "c")
    rows = _frame().assign(town=pd.Categorical(["Rom"] * COUNT, categories=[*sorted(TOWNS), "Rom"]))
    got = served(reference, {"town": np.full(COUNT, "Rom"), "zone": ZONES * 1.0, "size": SIZE})
    assert got[:, 0] == pytest.approx(model.predict(rows), abs=1e-5)


CODES = np.stack([TOWN, ZONE, SIZE], axis=1)
STRANGE = np.concatenate(
    [CODES, CODES[:40] + np.array([30, 0.7, 0]), CODES[:40] * np.array([-1, 1, 1])]
)
STRANGE[-5:, 0] = np.nan


def test_categories_that_are_numbers_in_lightgbm(tmp_path):
    model = lightgbm.LGBMClassifier(**LGBM).fit(CODES, TWO, categorical_feature=[0, 1])
    task = opened(_saved(model, tmp_path))
    reference = built(task, tmp_path / "c")
    assert failed(task, reference) == []
    columns = {f"Column_{place}": STRANGE[:, place] for place in range(3)}
    assert served(reference, columns) == pytest.approx(model.predict_proba(STRANGE), abs=1e-5)


@pytest.mark.parametrize("most", [1, 99])
def test_categories_that_are_numbers_in_xgboost(tmp_path, most):
    types = {"feature_types": ["c", "c", "q"], "enable_categorical": True}
    data = xgboost.DMatrix(CODES, VALUES, feature_names=list(NAMES), **types)
    settings = {"nthread": 1, "max_depth": 4, "max_cat_to_onehot": most}
    booster = xgboost.train(settings, data, 10)
    booster.save_model(tmp_path / "m.json")
    task = opened(tmp_path / "m.json", {"missing": "nan"})
    reference = built(task, tmp_path / "c")
    assert failed(task, reference) == []
    kept = STRANGE[STRANGE[:, 0] >= 0]
    wanted = booster.predict(xgboost.DMatrix(kept, feature_names=list(NAMES), **types))
    columns = {name: kept[:, place] for place, name in enumerate(NAMES)}
    assert served(reference, columns)[:, 0] == pytest.approx(wanted, abs=1e-5)


def test_categories_that_the_file_does_not_place_are_refused(tmp_path):
    rows = _frame().assign(zone=pd.Categorical(ZONES, ordered=True))
    model = lightgbm.LGBMRegressor(**LGBM).fit(rows, VALUES)
    with pytest.raises(SourceRefused, match="2 columns of pandas' type category, and 1 are known"):
        opened(_saved(model, tmp_path))
