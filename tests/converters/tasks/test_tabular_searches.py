"""Outlier detectors and clusterers, wrappers around an estimator, and steps whose output jumps:
each predicts new rows as scikit-learn does."""

import numpy as np
import pytest
import skops.io
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.compose import TransformedTargetRegressor
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import IsolationForest, RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import RFE, SequentialFeatureSelector
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    TunedThresholdClassifierCV,
)
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import (
    Binarizer,
    KBinsDiscretizer,
    PolynomialFeatures,
    StandardScaler,
)
from sklearn.svm import OneClassSVM

from converters.errors import ConversionError
from tests.tables_in_process import (
    build_reference,
    failed_checks,
    graph_scores,
    named_columns,
    open_task,
)
from tests.tiny_tabular_models import DIABETES, WINE

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
ROWS = WINE[0]
NEW_ROWS = ROWS + np.random.default_rng(3).normal(size=ROWS.shape) * ROWS.std(axis=0) * 0.3
SMALL = {"n_estimators": 12, "random_state": 0}
DETECTORS = {
    "outliers": IsolationForest(**SMALL),
    "outliers, some columns": IsolationForest(
        **SMALL, max_features=0.5, max_samples=64, contamination=0.1
    ),
    "outliers behind a scaler": make_pipeline(StandardScaler(), IsolationForest(**SMALL)),
    **{
        f"one class, {kernel}": make_pipeline(StandardScaler(), OneClassSVM(kernel=kernel, nu=0.2))
        for kernel in ("rbf", "poly", "sigmoid", "linear")
    },
    "clusters": KMeans(4, n_init=1, random_state=0),
    "clusters behind a scaler": make_pipeline(
        StandardScaler(), MiniBatchKMeans(3, n_init=1, random_state=0)
    ),
    **{
        f"a {model.__name__} of {covariance} covariances": make_pipeline(
            StandardScaler(), model(n_components=3, covariance_type=covariance, random_state=0)
        )
        for model in (GaussianMixture, BayesianGaussianMixture)
        for covariance in ("full", "tied", "diag", "spherical")
    },
    "a mixture of components that no row is near to": BayesianGaussianMixture(
        n_components=4,
        weight_concentration_prior_type="dirichlet_distribution",
        weight_concentration_prior=1e-3,
        random_state=0,
    ),
}
AS_STEPS = {
    "distances to clusters": make_pipeline(
        StandardScaler(), KMeans(4, n_init=1, random_state=0), LogisticRegression(max_iter=500)
    ),
    "distances beside components": make_pipeline(
        StandardScaler(),
        make_union(MiniBatchKMeans(3, n_init=1, random_state=0), PCA(2)),
        RandomForestClassifier(4, random_state=0),
    ),
    "columns chosen one by one": make_pipeline(
        SequentialFeatureSelector(GaussianNB(), n_features_to_select=3, cv=2), GaussianNB()
    ),
}


def _prove(model, path):
    skops.io.dump(model, path / "m.skops")
    task = open_task(path / "m.skops")
    reference = build_reference(task, path / "c")
    assert failed_checks(task, reference) == []
    return task, reference


def _new_scores(reference):
    """What the graph gives for ``NEW_ROWS``."""
    return graph_scores(reference, named_columns(NEW_ROWS, [f"f{index}" for index in range(13)]))


@pytest.mark.parametrize("name", DETECTORS)
def test_outliers_and_clusters(tmp_path, name):
    model = DETECTORS[name].fit(ROWS)
    task, reference = _prove(model, tmp_path)
    actual = _new_scores(reference)
    if hasattr(model, "decision_function"):
        assert actual[:, 0] == pytest.approx(model.decision_function(NEW_ROWS), abs=1e-6)
        assert ((actual[:, 0] < 0) == (model.predict(NEW_ROWS) < 0)).all()
        assert any("below 0 it is an outlier" in note for note in task.exercised(reference))
        return
    assert task.model.labels == tuple(map(str, range(actual.shape[1])))
    assert (actual.argmax(axis=1) == model.predict(NEW_ROWS)).all()
    is_mixture = hasattr(model, "predict_proba")
    expected = model.predict_proba(NEW_ROWS) if is_mixture else -model.transform(NEW_ROWS)
    assert actual == pytest.approx(expected, rel=3e-5, abs=1e-6)


@pytest.mark.parametrize("name", AS_STEPS)
def test_estimators_and_selections_as_steps(tmp_path, name):
    model = AS_STEPS[name].fit(*WINE)
    _, reference = _prove(model, tmp_path)
    actual = _new_scores(reference)
    assert actual == pytest.approx(model.predict_proba(NEW_ROWS), abs=1e-5)


def test_a_classifier_as_a_step_is_refused_with_what_to_do(tmp_path):
    model = make_pipeline(LinearDiscriminantAnalysis(), LogisticRegression()).fit(*WINE)
    with pytest.raises(ConversionError, match="a classifier that transforms columns"):
        _prove(model, tmp_path)


WRAPPERS = {
    "a search for parameters": GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression()),
        {"logisticregression__C": [0.1, 1]},
        cv=3,
    ),
    "a search over forests": GridSearchCV(
        RandomForestClassifier(4, random_state=0), {"max_depth": [2, 4]}, cv=3
    ),
    "some columns": RFE(RandomForestClassifier(4, random_state=0), n_features_to_select=4),
    "a frozen one": FrozenEstimator(RandomForestClassifier(4, random_state=0).fit(*WINE)),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_around_an_estimator(tmp_path, name):
    model = WRAPPERS[name].fit(*WINE)
    _, reference = _prove(model, tmp_path)
    actual = _new_scores(reference)
    assert actual == pytest.approx(model.predict_proba(NEW_ROWS), abs=1e-5)


@pytest.mark.parametrize("in_a_pipeline", [False, True])
def test_the_threshold_of_a_decision_is_said(tmp_path, in_a_pipeline):
    """The scores are predict_proba, which no threshold changes; the card says what predict() does
    with them."""
    rows, classes = WINE[0], WINE[1] > 0
    threshold = FixedThresholdClassifier(LogisticRegression(max_iter=50), threshold=0.8)
    model = make_pipeline(StandardScaler(), threshold) if in_a_pipeline else threshold
    model.fit(rows, classes)
    task, reference = _prove(model, tmp_path)
    actual = _new_scores(reference)
    assert actual == pytest.approx(model.predict_proba(NEW_ROWS), abs=1e-5)
    assert "says 'True' where its score is at least 0.8" in "\n".join(task.card()["remarks"])
    assert ((actual[:, 1] >= 0.8) == model.predict(NEW_ROWS)).all()


def test_a_tuned_threshold_is_said(tmp_path):
    tuned = TunedThresholdClassifierCV(LogisticRegression(max_iter=50), cv=2)
    model = make_pipeline(StandardScaler(), tuned).fit(WINE[0], WINE[1] > 0)
    skops.io.dump(model, tmp_path / "m.skops")
    remarks = "\n".join(open_task(tmp_path / "m.skops").model.remarks)
    assert f"'True' where its score is at least {model[-1].best_threshold_:.6g}" in remarks


TEXTS = ["good thing", "bad thing here", "so so", "quite good indeed"] * 20


def test_a_search_and_a_target_over_texts(tmp_path):
    search = GridSearchCV(
        make_pipeline(TfidfVectorizer(), Ridge()), {"ridge__alpha": [0.1, 1]}, cv=3
    )
    model = TransformedTargetRegressor(search, func=np.log1p, inverse_func=np.expm1)
    model.fit(TEXTS, np.tile([5.0, 1.0, 2.0, 7.0], 20))
    _, reference = _prove(model, tmp_path)
    new_texts = ["good", "bad thing", "", "so quite"]
    assert graph_scores(reference, {"text": np.array(new_texts)})[:, 0] == pytest.approx(
        model.predict(new_texts)
    )


STEPS = {
    "bins": KBinsDiscretizer(5, encode="ordinal", strategy="uniform"),
    "bins, one-hot": KBinsDiscretizer(5, encode="onehot"),
    "bins of quantiles": KBinsDiscretizer(4, encode="onehot-dense", strategy="quantile"),
    "a polynomial": make_pipeline(StandardScaler(), PolynomialFeatures(3)),
    "products": make_pipeline(
        StandardScaler(), PolynomialFeatures(interaction_only=True, include_bias=False)
    ),
}
OFFSETS = {
    "ones": lambda n: n,
    "1e8": lambda n: 1e8 + n,
    "seconds": lambda n: 1.7e9 + n,
    "numbers of things": lambda n: 9e14 + n * 3,
}


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("name", STEPS)
def test_steps_over_numbers_that_fp32_cannot_tell_apart(tmp_path, name, offset):
    numbers = np.random.default_rng(2).integers(0, 400, (700, 3)).astype(float)
    targets = numbers[:, 0] / 40 + np.sin(numbers[:, 1] / 20) * 3
    rows = OFFSETS[offset](numbers)
    model = make_pipeline(STEPS[name], Ridge()).fit(rows[:400], targets[:400])
    _, reference = _prove(model, tmp_path)
    actual = graph_scores(reference, named_columns(rows[400:], ["f0", "f1", "f2"]))[:, 0]
    assert actual == pytest.approx(model.predict(rows[400:]), abs=1e-4)


def test_a_threshold_beyond_fp32(tmp_path):
    rows = np.random.default_rng(2).integers(0, 400, (700, 3)) + 1e8
    targets = (rows > 1e8 + 201).sum(axis=1) + rows[:, 0] * 0
    model = make_pipeline(Binarizer(threshold=1e8 + 201), Ridge()).fit(rows, targets)
    _, reference = _prove(model, tmp_path)
    actual = graph_scores(reference, named_columns(rows, ["f0", "f1", "f2"]))[:, 0]
    assert actual == pytest.approx(model.predict(rows), abs=1e-4)


def test_missing_numbers_replaced_by_a_constant(tmp_path):
    rows, targets = DIABETES
    with_missing = np.where(np.random.default_rng(0).random(rows.shape) < 0.2, np.nan, rows)
    model = make_pipeline(SimpleImputer(strategy="constant", fill_value=-9), Ridge())
    _, reference = _prove(model.fit(with_missing, targets), tmp_path)
    actual = graph_scores(
        reference, named_columns(with_missing, [f"f{index}" for index in range(10)])
    )[:, 0]
    assert actual == pytest.approx(model.predict(with_missing), rel=1e-5)
