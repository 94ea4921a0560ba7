"""Estimators made of other estimators, kernels and steps: their graphs give scikit-learn's own
answers to rows that the proof has not seen."""

import datetime

import numpy as np
import pandas as pd
import pytest
import skops.io
import xgboost
from lightgbm import LGBMClassifier
from sklearn import calibration, ensemble, feature_selection, multiclass
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import MaxAbsScaler, OneHotEncoder, StandardScaler
from sklearn.svm import SVC, SVR, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from converters.errors import SourceRefused
from converters.table import MISSING
from tests.tables_in_process import build_reference, failed_checks, graph_scores, open_task
from tests.tiny_tabular_models import WINE

pytestmark = pytest.mark.filterwarnings("ignore")
ROWS, CLASSES = WINE[0][:, :4], WINE[1]
TRAINED, FRESH = slice(0, None, 2), slice(1, None, 2)
TWO = (CLASSES > 0).astype(int)
VALUES = ROWS @ np.array([1, 2, -1, 0.5])


def forest(**settings):
    return ensemble.RandomForestClassifier(5, max_depth=3, random_state=0, **settings)


def boosted():
    return ensemble.HistGradientBoostingClassifier(max_iter=4)


def gradient():
    return ensemble.GradientBoostingClassifier(n_estimators=4)


PROBABILITIES = {
    "isotonic": (calibration.CalibratedClassifierCV(forest(), cv=2, method="isotonic"), CLASSES),
    "margins of trees": (
        calibration.CalibratedClassifierCV(gradient(), cv=2, ensemble=False),
        CLASSES,
    ),
    "two classes": (
        calibration.CalibratedClassifierCV(boosted(), cv=2, method="isotonic"),
        TWO,
    ),
    "kernels": (
        make_pipeline(StandardScaler(), calibration.CalibratedClassifierCV(SVC(), cv=2)),
        CLASSES,
    ),
    "temperature": (
        calibration.CalibratedClassifierCV(forest(), cv=2, method="temperature"),
        CLASSES,
    ),
    "frozen": (
        calibration.CalibratedClassifierCV(
            FrozenEstimator(boosted().fit(ROWS[TRAINED], CLASSES[TRAINED]))
        ),
        CLASSES,
    ),
    "LightGBM": (
        calibration.CalibratedClassifierCV(LGBMClassifier(n_estimators=4, verbose=-1), cv=2),
        TWO,
    ),
    "stack": (
        ensemble.StackingClassifier(
            [("tree", DecisionTreeClassifier(max_depth=2)), ("svc", LinearSVC())],
            LogisticRegression(),
            passthrough=True,
            cv=2,
        ),
        TWO,
    ),
    "weights": (
        ensemble.VotingClassifier(
            [("a", forest()), ("b", "drop"), ("c", GaussianNB())],
            voting="soft",
            weights=[3, 2, 1],
        ),
        CLASSES,
    ),
    "one against the rest": (multiclass.OneVsRestClassifier(LogisticRegression()), CLASSES),
    "LDA of two classes": (LinearDiscriminantAnalysis(), TWO),
    "every class unlikely": (
        make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss", random_state=0)),
        CLASSES,
    ),
    "modified Huber": (
        make_pipeline(StandardScaler(), SGDClassifier(loss="modified_huber", random_state=0)),
        CLASSES,
    ),
    "trees after sums": (make_pipeline(StandardScaler(), PCA(3), forest()), CLASSES),
    "trees after a scaler": (make_pipeline(MaxAbsScaler(), forest()), CLASSES),
    "first column": (
        make_pipeline(feature_selection.SelectKBest(k=1), forest()),
        (ROWS[:, 0] > 13).astype(int),
    ),
    "missing flags": (
        make_pipeline(
            make_union(SimpleImputer(), MissingIndicator(features="all")), LogisticRegression()
        ),
        CLASSES,
    ),
    "a search by a metric": (
        GridSearchCV(forest(), {"max_depth": [1, 2]}, cv=2, scoring="f1_macro"),
        CLASSES,
    ),
}
MARGINS = {
    "one against the rest": (multiclass.OneVsRestClassifier(LinearSVC()), CLASSES),
    "one pair": (multiclass.OneVsOneClassifier(LogisticRegression()), TWO),
    "pairs": (multiclass.OneVsOneClassifier(forest()), CLASSES),
    "a kernel per pair": (
        make_pipeline(StandardScaler(), SVC(kernel="poly", decision_function_shape="ovo")),
        CLASSES,
    ),
    "a kernel": (make_pipeline(StandardScaler(), SVC(kernel="sigmoid")), CLASSES),
    "two classes": (make_pipeline(StandardScaler(), SVC()), TWO),
}
REGRESSORS = {
    "weights": ensemble.VotingRegressor([("a", Ridge()), ("b", SVR())], weights=[1, 4]),
    "a kernel": make_pipeline(StandardScaler(), SVR(kernel="poly", coef0=0.5)),
}


def require_equal(estimator, columns, expected, folder):
    """The proof holds, and the graph gives ``expected`` for rows that it has not seen."""
    path = folder / "model.skops"
    skops.io.dump(estimator, path)
    task = open_task(path)
    reference = build_reference(task, folder / "reference")
    assert not failed_checks(task, reference)
    np.testing.assert_allclose(
        graph_scores(reference, columns), expected, atol=1e-5 * np.ptp(expected)
    )


def numbers(rows):
    return {f"f{index}": rows[:, index] for index in range(rows.shape[1])}


@pytest.mark.parametrize("name", PROBABILITIES)
def test_probabilities(name, tmp_path):
    estimator, classes = PROBABILITIES[name]
    estimator.fit(ROWS[TRAINED], classes[TRAINED])
    fresh = ROWS[FRESH]
    require_equal(estimator, numbers(fresh), estimator.predict_proba(fresh), tmp_path)


@pytest.mark.parametrize("name", MARGINS)
def test_margins(name, tmp_path):
    estimator, classes = MARGINS[name]
    estimator.fit(ROWS[TRAINED], classes[TRAINED])
    margins = estimator.decision_function(ROWS[FRESH])
    if margins.ndim == 1:
        margins = np.stack([-margins, margins], axis=1)
    require_equal(estimator, numbers(ROWS[FRESH]), margins, tmp_path)


@pytest.mark.parametrize("name", REGRESSORS)
def test_values(name, tmp_path):
    estimator = REGRESSORS[name].fit(ROWS[TRAINED], VALUES[TRAINED])
    expected = estimator.predict(ROWS[FRESH])[:, None]
    require_equal(estimator, numbers(ROWS[FRESH]), expected, tmp_path)


def test_one_class_of_texts_against_the_rest(tmp_path):
    texts = ["good thing", "bad thing here", "so so", "quite good indeed", "bad"] * 8
    labels = ["good", "bad", "fair", "good", "bad"] * 8
    estimator = make_pipeline(CountVectorizer(), multiclass.OneVsRestClassifier(LinearSVC()))
    estimator.fit(texts, labels)
    fresh = ["a good so thing", "nothing", "BAD, bad"]
    expected = estimator.decision_function(fresh)
    require_equal(estimator, {"text": np.array(fresh)}, expected, tmp_path)


def people(count, seed):
    rng = np.random.default_rng(seed)
    plans = rng.choice(np.array(["basic", "plus", None], dtype=object), count)
    return pd.DataFrame({"age": rng.normal(40, 9, count), "plan": plans})


def sent(table):
    """The columns as a client sends them."""
    plans = [MISSING if plan is None else plan for plan in table["plan"]]
    return {"age": table["age"].to_numpy(), "plan": np.array(plans)}


@pytest.mark.parametrize(
    "columns",
    [
        make_column_transformer(
            (StandardScaler(), make_column_selector(dtype_include="number")),
            (OneHotEncoder(), make_column_selector(dtype_include=object)),
        ),
        make_column_transformer(
            (StandardScaler(), slice(0, 1)), ("drop", []), (OneHotEncoder(), [False, True])
        ),
    ],
    ids=["by type", "slice and mask"],
)
def test_columns_selected_otherwise_than_by_name(columns, tmp_path):
    table, fresh = people(200, 1), people(50, 2)
    labels = np.where((table["age"] > 40) ^ (table["plan"] == "plus"), "high", "low")
    estimator = make_pipeline(columns, LogisticRegression()).fit(table, labels)
    require_equal(estimator, sent(fresh), estimator.predict_proba(fresh), tmp_path)


def test_a_vote_of_pipelines_that_read_texts(tmp_path):
    table, fresh = people(300, 1), people(60, 2)
    labels = np.where((table["age"] > 40) ^ (table["plan"] == "plus"), "high", "low")

    def pipeline(last):
        columns = make_column_transformer((StandardScaler(), ["age"]), (OneHotEncoder(), ["plan"]))
        return make_pipeline(columns, last)

    members = [("line", pipeline(LogisticRegression())), ("trees", pipeline(boosted()))]
    estimator = ensemble.VotingClassifier(members, voting="soft").fit(table, labels)
    require_equal(estimator, sent(fresh), estimator.predict_proba(fresh), tmp_path)


def refusal(path):
    with pytest.raises(SourceRefused) as caught:
        task = open_task(path)
        build_reference(task, path.parent / "reference")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_dates_as_categories_are_refused(tmp_path):
    """A client can only send texts and numbers, which an encoder of dates never knows: the library
    would answer all of them alike, and the graph with it."""
    days = [datetime.datetime(2024, 1, 1 + index % 7) for index in range(70)]
    table = pd.DataFrame({"day": days, "n": np.arange(70.0)})
    columns = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["day"]), (StandardScaler(), ["n"])
    )
    model = make_pipeline(columns, LogisticRegression()).fit(table, np.arange(70) % 2)
    skops.io.dump(model, tmp_path / "m.skops")
    assert "categories of type datetime64" in refusal(tmp_path / "m.skops")


def histogram_of_categories():
    model = ensemble.HistGradientBoostingClassifier(max_iter=2, categorical_features=[3])
    return model.fit(np.column_stack([ROWS[:, :3], CLASSES % 2]), CLASSES)


def several_labels():
    return multiclass.OneVsRestClassifier(LogisticRegression()).fit(
        ROWS, np.stack([TWO, 1 - TWO], axis=1)
    )


def dictionaries():
    rows = [{"a": float(index % 3), "b": "xyz"[index % 3]} for index in range(60)]
    return make_pipeline(DictVectorizer(), LogisticRegression()).fit(rows, np.arange(60) % 2)


def early_stop():
    booster = LGBMClassifier(n_estimators=4, verbose=-1, pred_early_stop=True)
    return make_pipeline(StandardScaler(), booster).fit(ROWS, TWO)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (histogram_of_categories, "splits on categories"),
        (several_labels, "several labels per row"),
        (dictionaries, "takes dictionaries"),
        (early_stop, "pred_early_stop"),
    ],
)
def test_refusals_name_the_cause(make, reason, tmp_path):
    skops.io.dump(make(), tmp_path / "m.skops")
    assert reason in refusal(tmp_path / "m.skops")


def test_two_targets_of_xgboost_are_refused(tmp_path):
    """Two labels of a multilabel model look like the two classes of an ordinary one."""
    model = xgboost.XGBClassifier(n_estimators=2).fit(ROWS, np.stack([TWO, 1 - TWO], axis=1))
    model.save_model(tmp_path / "m.json")
    assert "predicts 2 values per row" in refusal(tmp_path / "m.json")


def test_linear_booster_of_three_classes(tmp_path):
    model = xgboost.XGBClassifier(booster="gblinear", n_estimators=5)
    model.fit(ROWS[TRAINED], CLASSES[TRAINED]).save_model(tmp_path / "m.json")
    task = open_task(tmp_path / "m.json")
    reference = build_reference(task, tmp_path / "reference")
    assert not failed_checks(task, reference)


@pytest.mark.parametrize("share", [0.5, 0.75, 0.9])
def test_a_truncated_booster_cannot_crash_the_conversion(share, tmp_path):
    model = xgboost.XGBClassifier(n_estimators=3).fit(ROWS, TWO)
    model.save_model(tmp_path / "whole.ubj")
    whole = (tmp_path / "whole.ubj").read_bytes()
    (tmp_path / "m.ubj").write_bytes(whole[: int(len(whole) * share)])
    refusal(tmp_path / "m.ubj")
