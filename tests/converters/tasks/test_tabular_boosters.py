"""XGBoost's and LightGBM's estimators inside scikit-learn's pipelines, with what only the estimator
itself knows: which number means missing, where training stopped."""

import warnings

import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.ensemble import VotingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from converters.errors import SourceRefused
from tests.tables_in_process import (
    build_reference,
    failed_checks,
    graph_scores,
    named_columns,
    open_task,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightgbm
    import xgboost

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
RNG = np.random.default_rng(7)
COUNT = 400
TABLE = pd.DataFrame(
    {
        "age": RNG.normal(40, 12, COUNT).round(),
        "income": np.where(RNG.random(COUNT) < 0.2, np.nan, RNG.normal(50, 20, COUNT)),
        "plan": RNG.choice(["basic", "plus", "pro", "team", "trial"], COUNT),
    }
)
VALUES = (
    TABLE["age"] / 10
    + (TABLE["plan"] == "pro") * 3
    + TABLE["income"].fillna(90) / 20
    + RNG.normal(size=COUNT)
).to_numpy()
CLASSES = np.digitize(VALUES, [7, 9])
TWO = (VALUES > 8).astype(int)
NEW_ROWS = TABLE.sample(200, random_state=1).assign(age=lambda t: t["age"] + 1)
XGB = {"n_estimators": 12, "max_depth": 4, "n_jobs": 1}
LGBM = {"n_estimators": 12, "verbose": -1, "n_jobs": 1, "min_child_samples": 5}


def _mixed(estimator, threshold=0.3, *, scaler=None):
    """A ColumnTransformer's rows are sparse if fewer than ``threshold`` of their values are not
    0."""
    transformers = [
        ("number", scaler or StandardScaler(), ["age", "income"]),
        ("text", OneHotEncoder(handle_unknown="ignore"), ["plan"]),
    ]
    return make_pipeline(ColumnTransformer(transformers, sparse_threshold=threshold), estimator)


PIPELINES = {
    "xgboost, dense rows": (_mixed(xgboost.XGBClassifier(**XGB), 0.0), CLASSES),
    "xgboost, sparse rows": (_mixed(xgboost.XGBClassifier(**XGB), 1.0), CLASSES),
    "xgboost, imputed": (
        _mixed(xgboost.XGBRegressor(**XGB), scaler=SimpleImputer(strategy="median")),
        VALUES,
    ),
    "xgboost, another missing": (
        _mixed(
            xgboost.XGBClassifier(missing=-999, **XGB),
            0.0,
            scaler=SimpleImputer(strategy="constant", fill_value=-999),
        ),
        TWO,
    ),
    "xgboost, sparse and another missing": (
        _mixed(
            xgboost.XGBClassifier(missing=-1, **XGB),
            1.0,
            scaler=SimpleImputer(strategy="constant", fill_value=-1),
        ),
        TWO,
    ),
    "xgboost, random forest": (_mixed(xgboost.XGBRFRegressor(**XGB)), VALUES),
    "lightgbm, two classes": (_mixed(lightgbm.LGBMClassifier(**LGBM)), TWO),
    "lightgbm, names of classes": (
        _mixed(lightgbm.LGBMClassifier(**LGBM), 1.0),
        np.array(["low", "middle", "high"])[CLASSES],
    ),
    "lightgbm, regressor": (_mixed(lightgbm.LGBMRegressor(**LGBM), 0.0), VALUES),
    "a logarithm of the target": (
        TransformedTargetRegressor(
            _mixed(lightgbm.LGBMRegressor(**LGBM)), func=np.log1p, inverse_func=np.expm1
        ),
        np.abs(VALUES),
    ),
    "a vote": (
        _mixed(
            VotingClassifier(
                [("a", xgboost.XGBClassifier(**XGB)), ("b", LogisticRegression())], voting="soft"
            ),
            0.0,
            scaler=SimpleImputer(),
        ),
        CLASSES,
    ),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_booster_at_the_end_of_a_pipeline(tmp_path, name):
    model, targets = PIPELINES[name]
    skops.io.dump(model.fit(TABLE, targets), tmp_path / "m.skops")
    task = open_task(tmp_path / "m.skops")
    reference = build_reference(task, tmp_path / "c")
    assert failed_checks(task, reference) == []
    columns = {column: NEW_ROWS[column].to_numpy() for column in NEW_ROWS}
    columns["plan"] = columns["plan"].astype(np.str_)
    expected = (
        model.predict_proba(NEW_ROWS) if task.model.labels else model.predict(NEW_ROWS)[:, None]
    )
    assert graph_scores(reference, columns) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("mark", [np.nan, -999.0])
def test_an_estimator_keeps_settings_that_its_own_file_lacks(tmp_path, mark):
    rows = TABLE[["age", "income"]].to_numpy()
    rows, new_rows = (
        np.where(np.isnan(values), mark, values)
        for values in (rows, NEW_ROWS[["age", "income"]].to_numpy())
    )
    model = xgboost.XGBClassifier(
        **{**XGB, "n_estimators": 60}, missing=mark, early_stopping_rounds=3
    )
    model.fit(rows[:300], TWO[:300], eval_set=[(rows[300:], TWO[300:])], verbose=False)
    assert model.best_iteration + 1 < model.get_booster().num_boosted_rounds()
    skops.io.dump(model, tmp_path / "m.skops")
    task = open_task(tmp_path / "m.skops")
    reference = build_reference(task, tmp_path / "c")
    assert failed_checks(task, reference) == []
    actual = graph_scores(reference, named_columns(new_rows, ["f0", "f1"]))
    assert actual == pytest.approx(model.predict_proba(new_rows), abs=1e-5)
    assert any(f"reads {mark} as a missing number" in note for note in task.exercised(reference))


def test_lightgbm_with_early_stopping_in_a_pipeline(tmp_path):
    rows = TABLE[["age", "income"]].to_numpy()
    model = lightgbm.LGBMRegressor(**{**LGBM, "n_estimators": 200}, early_stopping_round=3)
    model.fit(rows[:300], VALUES[:300], eval_set=[(rows[300:], VALUES[300:])])
    assert model.best_iteration_ < 200
    skops.io.dump(make_pipeline(FunctionTransformer().fit(rows), model), tmp_path / "m.skops")
    task = open_task(tmp_path / "m.skops")
    reference = build_reference(task, tmp_path / "c")
    assert failed_checks(task, reference) == []
    actual = graph_scores(reference, named_columns(rows, ["f0", "f1"]))[:, 0]
    assert actual == pytest.approx(model.predict(rows), abs=1e-4)


def test_texts_into_xgboost(tmp_path):
    texts = ["a good thing", "bad thing", "not so good", "bad, bad"] * 20
    model = make_pipeline(TfidfVectorizer(), xgboost.XGBClassifier(**XGB)).fit(texts, [1, 0] * 40)
    skops.io.dump(model, tmp_path / "m.skops")
    task = open_task(tmp_path / "m.skops")
    reference = build_reference(task, tmp_path / "c")
    assert failed_checks(task, reference) == []
    new_texts = ["good", "bad thing and good", "", "nothing known"]
    actual = graph_scores(reference, {"text": np.array(new_texts)})
    assert actual == pytest.approx(model.predict_proba(new_texts), abs=1e-5)


def test_a_booster_that_its_own_file_cannot_convert_is_refused_in_a_pipeline(tmp_path):
    rows = TABLE[["age"]].to_numpy()
    model = make_pipeline(StandardScaler(), xgboost.XGBRegressor(booster="gblinear", **XGB))
    skops.io.dump(model.fit(rows, VALUES), tmp_path / "m.skops")
    with pytest.raises(SourceRefused, match=r"\(gblinear\) is not converted inside a pipeline"):
        build_reference(open_task(tmp_path / "m.skops"), tmp_path / "c")
