"""Splits on categories inside LightGBM and XGBoost: served as the library predicts, for known,
unknown and missing categories."""

import warnings

import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.ensemble import VotingRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MaxAbsScaler

from converters.errors import SourceRefused
from converters.table import MISSING
from tests.tables_in_process import build_reference, failed_checks, graph_scores, open_task

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightgbm
    import xgboost

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
RNG = np.random.default_rng(8)
COUNT = 600
TOWNS = np.array(["Ulm", "Koeln", "Bonn", "Jena", "Kiel", "Trier", "Hof", "Gera", "Celle", "Suhl"])
TOWN, ZONE = RNG.integers(0, 10, COUNT), RNG.integers(0, 7, COUNT)
SIZE = RNG.normal(size=COUNT)
VALUES = (
    np.isin(TOWN, [1, 4, 6]) * 3.0
    + np.isin(ZONE, [0, 5]) * (SIZE > 0) * 2
    + SIZE
    + RNG.normal(size=COUNT) * 0.2
)
TWO, THREE = (VALUES > 1.5).astype(int), np.digitize(VALUES, [0, 2])
ZONES = ZONE * 10 + 5
LGBM = {"n_estimators": 12, "verbose": -1, "n_jobs": 1, "min_child_samples": 5, "cat_smooth": 1}
LGBM |= {"min_data_per_group": 5, "max_cat_to_onehot": 3}
XGB = {"n_estimators": 12, "n_jobs": 1, "enable_categorical": True, "max_depth": 4}
NAMES = ("town", "zone", "size")


def _frame(*, missing_share=0.0):
    holes = np.random.default_rng(2).random(COUNT) < missing_share
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


def _save(model, folder):
    if isinstance(model, lightgbm.LGBMModel):
        model.booster_.save_model(folder / "m.txt")
        return folder / "m.txt"
    model.save_model(folder / "m.json")
    return folder / "m.json"


def _predictions(model, rows):
    predict = model.predict_proba if hasattr(model, "predict_proba") else model.predict
    return np.asarray(predict(rows)).reshape(len(rows), -1)


@pytest.mark.parametrize("missing_share", [0.0, 0.1])
@pytest.mark.parametrize("name", MODELS)
def test_categories_of_a_data_frame(tmp_path, name, missing_share):
    model, targets = MODELS[name]
    rows = _frame(missing_share=missing_share)
    path = _save(model.fit(rows, targets), tmp_path)
    options = {} if path.suffix == ".txt" else {"missing": "nan"}
    task = open_task(path, options)
    reference = build_reference(task, tmp_path / "c")
    assert failed_checks(task, reference) == []
    towns = rows["town"].astype(object).where(rows["town"].notna(), MISSING).to_numpy(np.str_)
    actual = graph_scores(reference, {"town": towns, "zone": ZONES.astype(float), "size": SIZE})
    assert actual == pytest.approx(_predictions(model, rows), abs=1e-5)
    town = next(column for column in reference.metadata["columns"] if column["name"] == "town")
    assert sorted(town["categories"]) == sorted(TOWNS)
    assert town["open"] == (path.suffix == ".txt")


def test_categories_that_xgboost_itself_truncates_are_refused(tmp_path):
    rows = _frame().assign(town=pd.Categorical(np.char.replace(TOWNS[TOWN], "oe", "ö")))
    path = _save(xgboost.XGBRegressor(**XGB).fit(rows, VALUES), tmp_path)
    with pytest.raises(SourceRefused, match="'town' wrongly, because they have letters beyond"):
        open_task(path)


def test_an_unknown_category_is_served_as_lightgbm_predicts_it(tmp_path):
    model = lightgbm.LGBMRegressor(**LGBM).fit(_frame(), VALUES)
    task = open_task(_save(model, tmp_path))
    reference = build_reference(task, tmp_path / "c")
    rows = _frame().assign(town=pd.Categorical(["Rom"] * COUNT, categories=[*sorted(TOWNS), "Rom"]))
    actual = graph_scores(
        reference, {"town": np.full(COUNT, "Rom"), "zone": ZONES * 1.0, "size": SIZE}
    )
    assert actual[:, 0] == pytest.approx(model.predict(rows), abs=1e-5)


CODES = np.stack([TOWN, ZONE, SIZE], axis=1)
UNUSUAL_CODES = np.concatenate(
    [CODES, CODES[:40] + np.array([30, 0.7, 0]), CODES[:40] * np.array([-1, 1, 1])]
)
UNUSUAL_CODES[-5:, 0] = np.nan


def test_numeric_categories_in_lightgbm(tmp_path):
    model = lightgbm.LGBMClassifier(**LGBM).fit(CODES, TWO, categorical_feature=[0, 1])
    task = open_task(_save(model, tmp_path))
    reference = build_reference(task, tmp_path / "c")
    assert failed_checks(task, reference) == []
    columns = {f"Column_{index}": UNUSUAL_CODES[:, index] for index in range(3)}
    assert graph_scores(reference, columns) == pytest.approx(
        model.predict_proba(UNUSUAL_CODES), abs=1e-5
    )


@pytest.mark.parametrize("max_onehot", [1, 99])
def test_numeric_categories_in_xgboost(tmp_path, max_onehot):
    types = {"feature_types": ["c", "c", "q"], "enable_categorical": True}
    data = xgboost.DMatrix(CODES, VALUES, feature_names=list(NAMES), **types)
    settings = {"nthread": 1, "max_depth": 4, "max_cat_to_onehot": max_onehot}
    booster = xgboost.train(settings, data, 10)
    booster.save_model(tmp_path / "m.json")
    task = open_task(tmp_path / "m.json", {"missing": "nan"})
    reference = build_reference(task, tmp_path / "c")
    assert failed_checks(task, reference) == []
    rows = UNUSUAL_CODES[UNUSUAL_CODES[:, 0] >= 0]
    expected = booster.predict(xgboost.DMatrix(rows, feature_names=list(NAMES), **types))
    columns = {name: rows[:, index] for index, name in enumerate(NAMES)}
    assert graph_scores(reference, columns)[:, 0] == pytest.approx(expected, abs=1e-5)


def test_categories_that_the_file_does_not_assign_are_refused(tmp_path):
    rows = _frame().assign(zone=pd.Categorical(ZONES, ordered=True))
    model = lightgbm.LGBMRegressor(**LGBM).fit(rows, VALUES)
    with pytest.raises(SourceRefused, match="2 columns of pandas' type category, and 1 are known"):
        open_task(_save(model, tmp_path))


def _dumped(model, folder):
    skops.io.dump(model, folder / "m.skops")
    return open_task(folder / "m.skops")


ESTIMATORS = {
    "lightgbm": (lightgbm.LGBMClassifier(**LGBM), np.where(TWO, "yes", "no")),
    "lightgbm in a pipeline by itself": (
        Pipeline([("nothing", "passthrough"), ("model", lightgbm.LGBMRegressor(**LGBM))]),
        VALUES,
    ),
    "xgboost": (xgboost.XGBClassifier(**XGB), TWO),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_in_skops_is_asked_as_its_user_asks_it(tmp_path, name):
    """The table has columns of pandas' type ``category``, which skops does not name."""
    model, targets = ESTIMATORS[name]
    model.fit(_frame(missing_share=0.1), targets)
    task = _dumped(model, tmp_path)
    reference = build_reference(task, tmp_path / "c")
    assert failed_checks(task, reference) == []
    rows = _frame(missing_share=0.3)
    towns = rows["town"].astype(object).where(rows["town"].notna(), MISSING).to_numpy(np.str_)
    actual = graph_scores(reference, {"town": towns, "zone": ZONES.astype(float), "size": SIZE})
    assert actual == pytest.approx(_predictions(model, rows), abs=1e-5)
    assert list(task.model.labels) == [str(label) for label in getattr(model, "classes_", ())]


def test_an_estimator_in_skops_with_numeric_categories(tmp_path):
    model = lightgbm.LGBMClassifier(**LGBM).fit(CODES, TWO, categorical_feature=[0, 1])
    task = _dumped(model, tmp_path)
    reference = build_reference(task, tmp_path / "c")
    assert failed_checks(task, reference) == []
    columns = {f"Column_{index}": UNUSUAL_CODES[:, index] for index in range(3)}
    assert graph_scores(reference, columns) == pytest.approx(
        model.predict_proba(UNUSUAL_CODES), abs=1e-5
    )


def _after_a_step():
    model = Pipeline([("scale", MaxAbsScaler()), ("model", lightgbm.LGBMRegressor(**LGBM))])
    return model.fit(CODES, VALUES, model__categorical_feature=[0, 1])


def _in_a_vote():
    members = [("a", lightgbm.LGBMRegressor(**LGBM)), ("b", lightgbm.LGBMRegressor(**LGBM))]
    return VotingRegressor(members).fit(_frame(), VALUES)


@pytest.mark.parametrize("make", [_after_a_step, _in_a_vote])
def test_categories_inside_a_larger_model_are_refused_with_what_to_do(tmp_path, make):
    with pytest.raises(SourceRefused, match=r"splits on categories .*: save it by itself"):
        _dumped(make(), tmp_path)
