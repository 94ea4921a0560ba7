"""Categories: missing, rare and unknown ones, with all of the encoder's options."""

import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, TargetEncoder

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


def test_numbers_that_a_strict_encoder_does_not_know_are_refused_by_the_schema(tmp_path):
    rows = RNG.choice([1.0, 2.0, 4.0], (200, 2))
    model = make_pipeline(OneHotEncoder(), RandomForestRegressor(5, random_state=0))
    skops.io.dump(model.fit(rows, rows[:, 0]), tmp_path / "m.skops")
    task = open_task(tmp_path / "m.skops")
    reference = build_reference(task, tmp_path / "c")
    assert failed_checks(task, reference) == []
    assert _fields(task, reference)["f0"]["enum"] == [1.0, 2.0, 4.0]
