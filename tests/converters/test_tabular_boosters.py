"""XGBoost's and LightGBM's estimators inside scikit-learn's pipelines, with what only the estimator
itself knows: which number is missing, where training stopped."""

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
from tests.tables_in_process import built, failed, numbered, opened, served

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightgbm
    import xgboost

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
DRAW = np.random.default_rng(7)
COUNT = 400
TABLE = pd.DataFrame(
    {
        "age": DRAW.normal(40, 12, COUNT).round(),
        "income": np.where(DRAW.random(COUNT) < 0.2, np.nan, DRAW.normal(50, 20, COUNT)),
        "plan": DRAW.choice(["basic", "plus", "pro", "team", "trial"], COUNT),
    }
)
VALUES = (
    TABLE["age"] / 10
    + (TABLE["plan"] == "pro") * 3
    + TABLE["income"].fillna(90) / 20
    + DRAW.normal(size=COUNT)
).to_numpy()
CLASSES = np.digitize(VALUES, [7, 9])
TWO = (VALUES > 8).astype(int)
FRESH = TABLE.sample(200, random_state=1).assign(age=lambda t: t["age"] + 1)
XGB = {"n_estimators": 12, "max_depth": 4, "n_jobs": 1}
LGBM = {"n_estimators": 12, "verbose": -1, "n_jobs": 1, "min_child_samples": 5}


def _mixed(last, threshold=0.3, *, scaler=None):
    """A ColumnTransformer's rows are sparse where fewer than ``threshold`` of them are not 0."""
    parts = [
        ("number", scaler or StandardScaler(), ["age", "income"]),
        ("text", OneHotEncoder(handle_unknown="ignore"), ["plan"]),
    ]
    return make_pipeline(ColumnTransformer(parts, sparse_threshold=threshold), last)


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
    model, answers = PIPELINES[name]
    skops.io.dump(model.fit(TABLE, answers), tmp_path / "m.skops")
    task = opened(tmp_path / "m.skops")
    reference = built(task, tmp_path / "c")
    assert failed(task, reference) == []
    columns = {column: FRESH[column].to_numpy() for column in FRESH}
    columns["plan"] = columns["plan"].astype(np.str_)
    wanted = model.predict_proba(FRESH) if task.model.labels else model.predict(FRESH)[:, None]
    assert served(reference, columns) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("mark", [np.nan, -999.0])
def test_an_estimator_alone_keeps_what_its_own_file_does_not(tmp_path, mark):
    rows = TABLE[["age", "income"]].to_numpy()
    rows, fresh = (
        np.where(np.isnan(each), mark, each) for each in (rows, FRESH[["age", "income"]].to_numpy())
    )
    model = xgboost.XGBClassifier(
        **{**XGB, "n_estimators": 60}, missing=mark, early_stopping_rounds=3
    )
    model.fit(rows[:300], TWO[:300], eval_set=[(rows[300:], TWO[300:])], verbose=False)
    assert model.best_iteration + 1 < model.get_booster().num_boosted_rounds()
    skops.io.dump(model, tmp_path / "m.skops")
    task = opened(tmp_path / "m.skops")
    reference = built(task, tmp_path / "c")
    assert failed(task, reference) == []
    got = served(reference, numbered(fresh, ["f0", "f1"]))
    assert got == pytest.approx(model.predict_proba(fresh), abs=1e-5)
    assert any(f"reads {mark} as a missing number" in note for note in task.exercised(reference))


def test_lightgbm_stops_early_in_a_pipeline(tmp_path):
    rows = TABLE[["age", "income"]].to_numpy()
    model = lightgbm.LGBMRegressor(**{**LGBM, "n_estimators": 200}, early_stopping_round=3)
    model.fit(rows[:300], VALUES[:300], eval_set=[(rows[300:], VALUES[300:])])
    assert model.best_iteration_ < 200
    skops.io.dump(make_pipeline(FunctionTransformer().fit(rows), model), tmp_path / "m.skops")
    task = opened(tmp_path / "m.skops")
    reference = built(task, tmp_path / "c")
    assert failed(task, reference) == []
    got = served(reference, numbered(rows, ["f0", "f1"]))[:, 0]
    assert got == pytest.approx(model.predict(rows), abs=1e-4)


def test_texts_into_xgboost(tmp_path):
    texts = ["a good thing", "bad thing", "not so good", "bad, bad"] * 20
    model = make_pipeline(TfidfVectorizer(), xgboost.XGBClassifier(**XGB)).fit(texts, [1, 0] * 40)
    skops.io.dump(model, tmp_path / "m.skops")
    task = opened(tmp_path / "m.skops")
    reference = built(task, tmp_path / "c")
    assert failed(task, reference) == []
    fresh = ["good", "bad thing and good", "", "nothing known"]
    got = served(reference, {"text": np.array(fresh)})
    assert got == pytest.approx(model.predict_proba(fresh), abs=1e-5)


def test_what_a_booster_s_own_file_is_refused_for_is_refused_in_a_pipeline(tmp_path):
    rows = TABLE[["age"]].to_numpy()
    model = make_pipeline(StandardScaler(), xgboost.XGBRegressor(booster="gblinear", **XGB))
    skops.io.dump(model.fit(rows, VALUES), tmp_path / "m.skops")
    with pytest.raises(SourceRefused, match=r"\(gblinear\) is not converted inside a pipeline"):
        built(opened(tmp_path / "m.skops"), tmp_path / "c")
