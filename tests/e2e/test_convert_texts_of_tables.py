"""Text pipelines and missing categories of scikit-learn, through the command, Triton and REST."""

import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from tests.command_line import tidegate
from tests.running import launch, stop, wait_ready

GOOD = ["очень хороший товар", "schöne Möbel für Bäder", "I like it", "a great buy"]
BAD = ["плохое качество, сломан", "häßlich und kaputt", "I hate it", "not a great buy"]
ASKED = [*GOOD, *BAD, "PLOTT", "плохое", "Möbel", "", "x"]


@pytest.fixture(scope="module")
def models():
    mood = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression())
    mood.fit((GOOD + BAD) * 3, (["good"] * 4 + ["bad"] * 4) * 3)
    draw = np.random.default_rng(0)
    plan = draw.choice(["basic", "plus"], 300).astype(object)
    plan[draw.random(300) < 0.3] = None
    frame = pd.DataFrame({"plan": plan, "age": draw.normal(40, 9, 300)})
    columns = ColumnTransformer(
        [("c", OneHotEncoder(handle_unknown="ignore"), ["plan"])], remainder="passthrough"
    )
    churn = make_pipeline(columns, LogisticRegression())
    churn.fit(frame, np.where(frame["plan"].isna(), "churn", "stay"))
    return {"feelings": mood, "churn": churn}


@pytest.fixture(scope="module")
def served(models, tmp_path_factory):
    home = tmp_path_factory.mktemp("texts_served")
    for name, model in models.items():
        skops.io.dump(model, home / f"{name}.skops")
        run = tidegate(home, "convert", str(home / f"{name}.skops"), "--name", name)
        assert run.returncode == 0, run.stderr
    running = launch(home, *models)
    wait_ready(running)
    yield running
    assert stop(running) == 0


def _scores(response):
    assert response.status_code == 200, response.text
    return {label["label"]: label["score"] for label in response.json()["labels"]}


def test_texts_are_read_as_scikit_learn_reads_them(served, models):
    for text in ASKED:
        expected = models["feelings"].predict_proba([text])[0]
        actual = _scores(served.post("/v1/feelings", json={"text": text}))
        assert actual == pytest.approx(dict(zip(["bad", "good"], expected, strict=True)), abs=1e-5)


@pytest.mark.parametrize("plan", [None, "", "basic", "never seen"])
def test_null_is_the_missing_category(served, models, plan):
    row = {"plan": plan, "age": 40.0}
    expected = models["churn"].predict_proba(pd.DataFrame({"plan": [plan], "age": [40.0]}))[0]
    actual = _scores(served.post("/v1/churn", json=row))
    assert actual == pytest.approx(dict(zip(["churn", "stay"], expected, strict=True)), abs=1e-5)


def test_the_proof_says_what_the_samples_exercised(served):
    page = (served.home / "model_repository" / "feelings_onnx" / "1" / "proof.md").read_text()
    assert "terms of its vocabulary were in the samples" in page
    assert "likeliest labels: 2 of 2" in page
