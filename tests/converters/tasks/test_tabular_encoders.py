"""Categories: missing, rare and unknown ones, with all of the encoder's options."""

import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    BaggingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler, TargetEncoder
from sklearn.svm import LinearSVC

from converters.errors import SourceRefused
from converters.table import MISSING
from ensembles.tabular import declare
from tests.tables_in_process import build_reference, failed_checks, graph_scores, open_task

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
RNG = np.random.default_rng(3)
COUNT = 400


def _frame(seed, missing):
    rng = np.random.default_rng(seed)
    texts = rng.choice(
        ["basic", "plus", "专业", "é", "rare"], COUNT, p=[0.4, 0.3, 0.15, 0.13, 0.02]
    )
    texts = texts.astype(object)
    texts[rng.random(COUNT) < 0.2] = missing
    codes = rng.choice([1.0, 2.5, 7.0], COUNT)
    codes[rng.random(COUNT) < 0.1] = np.nan
    return pd.DataFrame({"plan": texts, "code": codes, "age": rng.normal(40, 9, COUNT)})


def _columns_of(frame):
    texts = [text if isinstance(text, str) else MISSING for text in frame["plan"]]
    return {
        "plan": np.array(texts),
        "code": frame["code"].to_numpy(),
        "age": frame["age"].to_numpy(),
    }


ENCODERS = {
    "one hot": OneHotEncoder(handle_unknown="ignore"),
    "strict": OneHotEncoder(),
    "drop first": OneHotEncoder(drop="first", handle_unknown="ignore"),
    "drop binary": OneHotEncoder(drop="if_binary", sparse_output=False),
    "rare": OneHotEncoder(min_frequency=0.05, handle_unknown="infrequent_if_exist"),
    "few": OneHotEncoder(max_categories=3, handle_unknown="ignore"),
    "ordinal": OrdinalEncoder(
        handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2
    ),
    "ordinal, rare": OrdinalEncoder(
        min_frequency=20,
        encoded_missing_value=-2,
        handle_unknown="use_encoded_value",
        unknown_value=99,
    ),
    "target": TargetEncoder(),
}


@pytest.mark.parametrize("missing", [None, np.nan], ids=["None", "NaN"])
@pytest.mark.parametrize("name", ENCODERS)
def test_every_option_of_an_encoder_is_served(tmp_path, name, missing):
    frame, new_rows = _frame(0, missing), _frame(1, missing)
    churns = (frame["plan"].isna() | (frame["code"] == 7)).astype(int)
    columns = ColumnTransformer(
        [("texts", ENCODERS[name], ["plan", "code"])], remainder="passthrough"
    )
    model = make_pipeline(columns, LogisticRegression(max_iter=300)).fit(frame, churns)
    skops.io.dump(model, tmp_path / "m.skops")
    task = open_task(tmp_path / "m.skops")
    reference = build_reference(task, tmp_path / "c")
    assert failed_checks(task, reference) == []
    is_open = task.explored.columns[0].open
    if is_open:
        new_rows.loc[:20, "plan"] = "never seen"
        new_rows.loc[20:30, "plan"] = ""
        new_rows.loc[30:40, "code"] = 3.0
    actual = graph_scores(reference, _columns_of(new_rows))
    assert actual == pytest.approx(model.predict_proba(new_rows), abs=1e-6)
    notes = "\n".join(task.exercised(reference))
    assert "column 'plan': 5 of 5 categories" in notes
    assert "no row had a missing value" not in notes
    field = _fields(task, reference)["plan"]
    assert field["type"] == ["string", "null"]
    assert field["x-null"] == MISSING


def _fields(task, reference):
    pipeline = declare("t", reference.metadata, task.golden(reference), task.card())
    return pipeline.public.endpoint_schema.request["properties"]


def test_none_and_nan_in_one_column_are_refused(tmp_path):
    frame = _frame(0, None)
    frame.loc[:9, "plan"] = np.nan
    values = frame["age"] * 2
    columns = ColumnTransformer([("t", OneHotEncoder(), ["plan"])])
    skops.io.dump(make_pipeline(columns, Ridge()).fit(frame, values), tmp_path / "m.skops")
    with pytest.raises(SourceRefused, match="both None and NaN"):
        open_task(tmp_path / "m.skops")


@pytest.mark.parametrize("missing", [None, np.nan], ids=["None", "NaN"])
@pytest.mark.parametrize("fill", ["basic", "nothing said"])
def test_an_imputer_fills_what_scikit_learn_fills(tmp_path, missing, fill):
    """A missing text, of the kind that training met, and not the empty text."""
    frame, new_rows = _frame(0, missing), _frame(1, missing)
    new_rows.loc[:20, "plan"] = ""
    imputer = SimpleImputer(strategy="constant", fill_value=fill, missing_values=missing)
    steps = make_pipeline(imputer, OneHotEncoder(handle_unknown="ignore"))
    churns = (frame["plan"].isna() | (frame["plan"] == "é")).astype(int)
    columns = ColumnTransformer([("texts", steps, ["plan"])])
    model = make_pipeline(columns, LogisticRegression()).fit(frame, churns)
    skops.io.dump(model, tmp_path / "m.skops")
    task = open_task(tmp_path / "m.skops")
    reference = build_reference(task, tmp_path / "c")
    assert failed_checks(task, reference) == []
    assert _fields(task, reference)["plan"]["type"] == ["string", "null"]
    columns = {"plan": _columns_of(new_rows)["plan"]}
    assert graph_scores(reference, columns) == pytest.approx(
        model.predict_proba(new_rows), abs=1e-6
    )


def test_an_imputer_of_nan_before_an_encoder_of_none_is_refused(tmp_path):
    frame = _frame(0, None)
    steps = make_pipeline(SimpleImputer(strategy="constant", fill_value="?"), OneHotEncoder())
    columns = ColumnTransformer([("texts", steps, ["plan"])])
    skops.io.dump(make_pipeline(columns, Ridge()).fit(frame, frame["age"]), tmp_path / "m.skops")
    with pytest.raises(SourceRefused, match="both None and NaN as missing values"):
        open_task(tmp_path / "m.skops")


def _served_like_the_library(model, folder, new_rows, columns):
    skops.io.dump(model, folder / "m.skops")
    task = open_task(folder / "m.skops")
    reference = build_reference(task, folder / "c")
    assert failed_checks(task, reference) == []
    assert graph_scores(reference, columns) == pytest.approx(
        model.predict_proba(new_rows), abs=1e-6
    )
    return task


def test_texts_and_numbers_are_filled_together(tmp_path):
    frame, new_rows = _frame(0, np.nan), _frame(1, np.nan)
    frame["age"] = frame["age"].where(frame["age"] > 25)
    steps = make_pipeline(
        SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")
    )
    columns = ColumnTransformer([("c", steps, ["plan", "code"])], remainder=SimpleImputer())
    model = make_pipeline(columns, LogisticRegression()).fit(frame, frame["plan"] == "plus")
    _served_like_the_library(model, tmp_path, new_rows, _columns_of(new_rows))


@pytest.mark.parametrize(
    "encoder",
    [
        OneHotEncoder(handle_unknown="ignore"),
        OrdinalEncoder(
            handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-7
        ),
    ],
)
@pytest.mark.parametrize("values", [[1, 5, None], [True, False, None], [2, 7, np.nan]], ids=str)
def test_numbers_that_were_objects_in_training(tmp_path, encoder, values):
    """pandas keeps numbers beside None as objects, and the encoder its categories."""

    def frame(seed):
        rng = np.random.default_rng(seed)
        picked = np.array(values, dtype=object)[rng.integers(0, 3, COUNT)]
        return pd.DataFrame({"code": picked, "age": rng.normal(40, 9, COUNT)})

    rows, new_rows = frame(0), frame(1)
    columns = ColumnTransformer([("c", encoder, ["code"])], remainder="passthrough")
    outcome = rows["code"].isna() | (rows["age"] > 45)
    model = make_pipeline(columns, RandomForestClassifier(5, random_state=0)).fit(rows, outcome)
    new_columns = {"code": new_rows["code"].astype(float), "age": new_rows["age"]}
    _served_like_the_library(model, tmp_path, new_rows, new_columns)


def test_a_column_transformer_inside_another(tmp_path):
    frame, new_rows = _frame(0, np.nan), _frame(1, np.nan)
    inner = ColumnTransformer(
        [("plan", OneHotEncoder(handle_unknown="ignore"), ["plan"])], remainder=SimpleImputer()
    )
    columns = ColumnTransformer(
        [("age", StandardScaler(), ["age"]), ("inner", inner, ["code", "plan"])]
    )
    model = make_pipeline(columns, LogisticRegression()).fit(frame, frame["plan"] == "plus")
    task = _served_like_the_library(model, tmp_path, new_rows, _columns_of(new_rows))
    assert [column.is_text for column in task.explored.columns] == [True, False, False]


@pytest.mark.parametrize("first", [0, 1])
def test_the_stricter_of_two_encoders_decides_what_a_client_may_send(tmp_path, first):
    frame, new_rows = _frame(0, np.nan), _frame(1, np.nan)
    loose = OrdinalEncoder(
        handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2
    )
    parts = [("loose", loose, ["plan"]), ("strict", OneHotEncoder(), ["plan"])]
    columns = ColumnTransformer([*parts[first:], *parts[:first]])
    forest = RandomForestClassifier(3, max_depth=4, random_state=0)
    model = make_pipeline(columns, forest).fit(frame, frame["plan"] == "plus")
    task = _served_like_the_library(
        model, tmp_path, new_rows, {"plan": _columns_of(new_rows)["plan"]}
    )
    assert not task.explored.columns[0].open


@pytest.mark.parametrize(
    "head",
    [
        GaussianNB(),
        KNeighborsClassifier(3),
        MLPClassifier((4,), max_iter=20, random_state=0),
        BaggingClassifier(LogisticRegression(), 3, random_state=0),
    ],
    ids=lambda head: type(head).__name__,
)
def test_estimators_of_skl2onnx_after_a_column_of_texts(tmp_path, head):
    """The first column's type is not the numbers' type."""
    frame, new_rows = _frame(0, np.nan), _frame(1, np.nan)
    model = _columns_and_a_model(head).fit(frame, frame["plan"] == "plus")
    _served_like_the_library(model, tmp_path, new_rows, _columns_of(new_rows))


def _columns_and_a_model(head):
    columns = ColumnTransformer(
        [("plan", OneHotEncoder(handle_unknown="ignore", min_frequency=3), ["plan"])],
        remainder=make_pipeline(SimpleImputer(), StandardScaler()),
    )
    return make_pipeline(columns, head)


WHOLE_PIPELINES = {
    "calibrated": CalibratedClassifierCV(_columns_and_a_model(LinearSVC()), cv=3),
    "a vote": VotingClassifier(
        [
            ("one", _columns_and_a_model(LogisticRegression())),
            ("other", _columns_and_a_model(GaussianNB())),
        ],
        voting="soft",
        weights=[1, 3],
    ),
    "a stack": StackingClassifier(
        [
            ("one", _columns_and_a_model(LogisticRegression())),
            ("other", _columns_and_a_model(LinearSVC())),
        ],
        cv=2,
    ),
    "one against the rest": OneVsRestClassifier(_columns_and_a_model(LogisticRegression())),
}


@pytest.mark.parametrize("name", WHOLE_PIPELINES)
def test_estimators_around_pipelines_that_take_columns_by_name(tmp_path, name):
    frame, new_rows = _frame(0, np.nan), _frame(1, np.nan)
    new_rows.loc[:20, "plan"] = "never seen"
    classes = np.where(frame["plan"] == "plus", "p", np.where(frame["age"] > 40, "old", "young"))
    model = WHOLE_PIPELINES[name].fit(frame, classes)
    task = _served_like_the_library(model, tmp_path, new_rows, _columns_of(new_rows))
    plan = task.explored.columns[0]
    assert plan.is_text and set(plan.categories) == {"basic", "plus", "专业", "é", "rare"}


def test_numbers_that_a_strict_encoder_does_not_know_are_refused_by_the_schema(tmp_path):
    rows = RNG.choice([1.0, 2.0, 4.0], (200, 2))
    model = make_pipeline(OneHotEncoder(), RandomForestRegressor(5, random_state=0))
    skops.io.dump(model.fit(rows, rows[:, 0]), tmp_path / "m.skops")
    task = open_task(tmp_path / "m.skops")
    reference = build_reference(task, tmp_path / "c")
    assert failed_checks(task, reference) == []
    assert _fields(task, reference)["f0"]["enum"] == [1.0, 2.0, 4.0]
