"""Kinds of scikit-learn models that people have: each is served as it answers, or refused with the
reason."""

import numpy as np
import pytest
import skops.io
from sklearn import feature_selection, linear_model, neighbors, preprocessing, svm
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import RandomForestRegressor
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.pipeline import make_pipeline

from converters.errors import ConversionError, SourceRefused
from converters.tabular import oracle
from converters.tabular.table import Table
from tests.tables_in_process import built, failed, numbered, opened, served
from tests.tiny_tabular_models import CANCER, DIABETES, WINE

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
HOLES = np.random.default_rng(0).random(DIABETES[0].shape) < 0.1
POSITIVE = np.abs(DIABETES[0]) * 100 + 1, DIABETES[1]
HOLED = np.where(HOLES, np.nan, DIABETES[0]), DIABETES[1]
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
        HOLED,
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
}


@pytest.mark.parametrize("name", KINDS)
def test_common_kinds(tmp_path, name):
    model, (rows, answers) = KINDS[name]
    model.fit(rows, answers)
    skops.io.dump(model, tmp_path / "m.skops")
    task = opened(tmp_path / "m.skops")
    reference = built(task, tmp_path / "c")
    assert failed(task, reference) == []
    got = served(reference, numbered(rows, [f"f{place}" for place in range(rows.shape[1])]))
    if hasattr(model, "predict_proba"):
        wanted = model.predict_proba(rows)
    elif hasattr(model, "decision_function"):
        wanted = model.decision_function(rows)
        wanted = wanted if wanted.ndim > 1 else np.stack([-wanted, wanted], axis=1)
        assert any("margins" in note for note in task.exercised(reference))
    else:
        wanted = model.predict(rows)[:, None]
    assert got == pytest.approx(wanted, rel=1e-4, abs=1e-4)


REFUSED = {
    "a target that has no way back": (
        TransformedTargetRegressor(
            linear_model.Ridge(), transformer=preprocessing.PowerTransformer()
        ),
        DIABETES,
        "a target transformed by a PowerTransformer has no converter",
    ),
    "no neighbours": (
        neighbors.RadiusNeighborsClassifier(1e-9),
        WINE,
        "give real ones with --samples",
    ),
    "texts in files": (
        make_pipeline(CountVectorizer(input="filename"), linear_model.LogisticRegression()),
        ([__file__, oracle.__file__], ["a", "b"]),
        "reads files",
    ),
    "a graph that does not load": (
        make_pipeline(KNNImputer(), linear_model.Ridge()),
        HOLED,
        "export it to ONNX yourself",
    ),
    "never fitted": (make_pipeline(TfidfVectorizer(), svm.LinearSVC()), None, "never fitted"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(tmp_path, name):
    model, data, reason = REFUSED[name]
    skops.io.dump(model.fit(*data) if data else model, tmp_path / "m.skops")
    with pytest.raises(ConversionError, match=reason):
        task = opened(tmp_path / "m.skops")
        built(task, tmp_path / "c")


def test_an_original_whose_answer_depends_on_its_past_is_refused(tmp_path, monkeypatch):
    """The second process is asked backwards, and answers otherwise."""
    asked = []

    def ask(_module, _model, _said, _questions, answers):
        asked.append(np.load(_questions)["rows"].tolist())
        return {"answers": np.full((len(asked[-1]), 1), 1.0 + 0.1 * len(asked))}

    monkeypatch.setattr(oracle, "ask", ask)
    rows = Table({"f0": np.arange(5.0)}, [f"row {place}" for place in range(5)])
    with pytest.raises(SourceRefused, match="differently in another order"):
        oracle.ask_library(tmp_path / "m.skops", {}, rows, tmp_path)
    assert asked[1] == asked[0][::-1]


def test_the_samples_reach_every_leaf_and_say_so(tmp_path):
    model = RandomForestRegressor(5, max_depth=6, random_state=0).fit(*DIABETES)
    skops.io.dump(model, tmp_path / "m.skops")
    task = opened(tmp_path / "m.skops")
    reference = built(task, tmp_path / "c")
    (note,) = [note for note in task.exercised(reference) if "leaves of 5 trees" in note]
    hit, total = (int(word) for word in note.replace("of", "").split()[:2])
    assert hit > 0.85 * total
    assert hit == total or "not reached: tree" in note
