"""Kinds of scikit-learn models in common use: each is served as it predicts, or refused with the
reason."""

import numpy as np
import pytest
import skops.io
from sklearn import feature_selection, linear_model, naive_bayes, neighbors, preprocessing, svm
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import (
    GradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
)
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.pipeline import make_pipeline

from converters.errors import ConversionError, SourceRefused
from converters.table import Table
from converters.tasks.tabular import reference
from tests.tables_in_process import (
    build_reference,
    failed_checks,
    graph_scores,
    named_columns,
    open_task,
)
from tests.tiny_tabular_models import CANCER, DIABETES, WINE

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
MISSING_CELLS = np.random.default_rng(0).random(DIABETES[0].shape) < 0.1
POSITIVE = np.abs(DIABETES[0]) * 100 + 1, DIABETES[1]
DATA_WITH_MISSING = np.where(MISSING_CELLS, np.nan, DIABETES[0]), DIABETES[1]
SCALED = preprocessing.StandardScaler

KINDS = {
    "a logarithm of the target": (
        TransformedTargetRegressor(linear_model.Ridge(), func=np.log1p, inverse_func=np.expm1),
        DIABETES,
    ),
    "a scaled target": (
        TransformedTargetRegressor(RandomForestRegressor(4), transformer=SCALED()),
        DIABETES,
    ),
    "a target behind a pipeline": (
        make_pipeline(
            SCALED(),
            TransformedTargetRegressor(linear_model.Ridge(), func=np.sqrt, inverse_func=np.square),
        ),
        DIABETES,
    ),
    "a logarithm of the columns": (
        make_pipeline(preprocessing.FunctionTransformer(np.log1p), linear_model.Ridge()),
        POSITIVE,
    ),
    "box-cox": (
        make_pipeline(preprocessing.PowerTransformer("box-cox"), linear_model.Ridge()),
        POSITIVE,
    ),
    "missing indicators": (
        make_pipeline(SimpleImputer(add_indicator=True), linear_model.Ridge()),
        DATA_WITH_MISSING,
    ),
    "selected columns": (
        make_pipeline(
            SCALED(), feature_selection.SelectKBest(k=4), linear_model.LogisticRegression()
        ),
        WINE,
    ),
    "margins of three": (make_pipeline(SCALED(), svm.LinearSVC()), WINE),
    "margins of two": (make_pipeline(SCALED(), linear_model.RidgeClassifier()), CANCER),
    "margins of support vectors": (make_pipeline(SCALED(), svm.SVC()), CANCER),
    "poisson": (linear_model.PoissonRegressor(), POSITIVE),
    "neighbors weighted by distance": (
        make_pipeline(SCALED(), neighbors.KNeighborsClassifier(weights="distance", p=1)),
        WINE,
    ),
    "values of neighbors weighted by distance": (
        neighbors.KNeighborsRegressor(4, weights="distance", p=3),
        DIABETES,
    ),
    "categories that are bins": (
        make_pipeline(
            preprocessing.KBinsDiscretizer(5, encode="ordinal"), naive_bayes.CategoricalNB()
        ),
        WINE,
    ),
    "trees after powers": (
        make_pipeline(
            preprocessing.PowerTransformer(),
            GradientBoostingRegressor(n_estimators=8, random_state=0),
        ),
        DIABETES,
    ),
    "trees after a tangent": (
        make_pipeline(
            preprocessing.FunctionTransformer(np.tanh),
            RandomForestClassifier(8, max_depth=5, random_state=0),
        ),
        WINE,
    ),
    "trees after shares": (
        make_pipeline(
            preprocessing.Normalizer("l1"), RandomForestClassifier(8, max_depth=4, random_state=0)
        ),
        WINE,
    ),
    "a stack of neighbors and vectors": (
        StackingClassifier(
            [("a", neighbors.KNeighborsClassifier()), ("b", svm.SVC())],
            RandomForestClassifier(6, max_depth=4, random_state=0),
        ),
        WINE,
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_common_models(tmp_path, name):
    model, (rows, targets) = KINDS[name]
    model.fit(rows, targets)
    skops.io.dump(model, tmp_path / "m.skops")
    task = open_task(tmp_path / "m.skops")
    reference = build_reference(task, tmp_path / "c")
    assert failed_checks(task, reference) == []
    actual = graph_scores(
        reference, named_columns(rows, [f"f{index}" for index in range(rows.shape[1])])
    )
    if hasattr(model, "predict_proba"):
        expected = model.predict_proba(rows)
    elif hasattr(model, "decision_function"):
        expected = model.decision_function(rows)
        expected = expected if expected.ndim > 1 else np.stack([-expected, expected], axis=1)
        assert any("margins" in note for note in task.exercised(reference))
    else:
        expected = model.predict(rows)[:, None]
    assert actual == pytest.approx(expected, rel=1e-4, abs=1e-4)


REFUSED = {
    "a target that has no way back": (
        TransformedTargetRegressor(
            linear_model.Ridge(), transformer=preprocessing.PowerTransformer()
        ),
        DIABETES,
        "a target transformed by a PowerTransformer has no converter",
    ),
    "a target whose way back has arguments": (
        TransformedTargetRegressor(
            linear_model.Ridge(),
            transformer=preprocessing.FunctionTransformer(
                np.log1p, np.expm1, inv_kw_args={"dtype": np.float32}
            ),
        ),
        DIABETES,
        "inv_kw_args= of the target",
    ),
    "a function with arguments": (
        make_pipeline(
            preprocessing.FunctionTransformer(np.exp, kw_args={"dtype": np.float32}),
            linear_model.Ridge(),
        ),
        DIABETES,
        "kw_args=.* has no converter: use a function without",
    ),
    "no neighbours": (
        neighbors.RadiusNeighborsClassifier(1e-9),
        WINE,
        "give real ones with --samples",
    ),
    "texts in files": (
        make_pipeline(CountVectorizer(input="filename"), linear_model.LogisticRegression()),
        ([__file__, reference.__file__], ["a", "b"]),
        "reads files",
    ),
    "a step that skl2onnx writes as a function": (
        make_pipeline(KNNImputer(), linear_model.Ridge()),
        DATA_WITH_MISSING,
        "train with a SimpleImputer instead",
    ),
    "the nearest texts": (
        make_pipeline(TfidfVectorizer(), neighbors.KNeighborsClassifier(2)),
        (["red wine", "white wine", "beer", "dark beer"], [0, 0, 1, 1]),
        "many are equally far",
    ),
    "never fitted": (make_pipeline(TfidfVectorizer(), svm.LinearSVC()), None, "never fitted"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(tmp_path, name):
    model, data, reason = REFUSED[name]
    skops.io.dump(model.fit(*data) if data else model, tmp_path / "m.skops")
    with pytest.raises(ConversionError, match=reason):
        task = open_task(tmp_path / "m.skops")
        build_reference(task, tmp_path / "c")


def test_an_original_whose_prediction_depends_on_earlier_rows_is_refused(tmp_path, monkeypatch):
    """The second process runs the rows backwards, and predicts differently."""
    calls = []

    def ask(_module, _model, _options, _size, rows_file, answers):
        calls.append(np.load(rows_file)["rows"].tolist())
        return {"answers": np.full((len(calls[-1]), 1), 1.0 + 0.1 * len(calls))}

    monkeypatch.setattr(reference, "ask", ask)
    rows = Table({"f0": np.arange(5.0)}, [f"row {index}" for index in range(5)])
    with pytest.raises(SourceRefused, match="differently in another order"):
        reference.ask_library(tmp_path / "m.skops", {}, rows, tmp_path)
    assert calls[1] == calls[0][::-1]


def test_the_samples_reach_most_leaves_and_the_note_says_how_many(tmp_path):
    model = RandomForestRegressor(5, max_depth=6, random_state=0).fit(*DIABETES)
    skops.io.dump(model, tmp_path / "m.skops")
    task = open_task(tmp_path / "m.skops")
    reference = build_reference(task, tmp_path / "c")
    (note,) = [note for note in task.exercised(reference) if "leaves of 5 trees" in note]
    reached, total = (int(word) for word in note.replace("of", "").split()[:2])
    assert reached > 0.85 * total
    assert reached == total or "not reached: tree" in note
