"""Tabular models, from a file to an endpoint: proved, served, or refused when they should be."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tritonclient import grpc as triton

from converters.sources.skops_file import load_skops
from tests.command_line import tidegate
from tests.running import launch, stop, wait_ready
from tests.tiny_tabular_models import DIABETES, customer_pipeline, customers, save


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A customer classifier and an XGBoost regressor."""
    folder = tmp_path_factory.mktemp("tables")
    save(customer_pipeline(), folder / "risk.skops", customers())
    customers()[0].drop(columns="score").head(60).to_csv(folder / "risk.csv", index=False)
    subprocess.run([sys.executable, "-c", TRAIN, str(folder / "progress.json")], check=True)
    return folder


TRAIN = """
import sys, xgboost
from sklearn.datasets import load_diabetes
data = load_diabetes()
rows = xgboost.DMatrix(data.data, data.target, feature_names=data.feature_names)
xgboost.train({"max_depth": 3, "nthread": 1}, rows, 10).save_model(sys.argv[1])
"""


@pytest.fixture(scope="module")
def served(models, tmp_path_factory):
    home = tmp_path_factory.mktemp("tables_served")
    samples = ("--samples", str(models / "risk.csv"))
    for arguments in (
        (str(models / "risk.skops"), "--name", "risk", *samples),
        (str(models / "progress.json"), "--name", "progress"),
    ):
        run = tidegate(home, "convert", *arguments)
        assert run.returncode == 0, run.stderr
    running = launch(home, "risk", "progress")
    wait_ready(running)
    yield running
    assert stop(running) == 0


def test_the_endpoint_gives_scikit_learns_answers(served, models):
    """By column name over REST, texts and numbers, one row and many."""
    original, _ = load_skops(models / "risk.skops")
    table = customers()[0].dropna().head(20)
    rows = table.drop(columns="score").to_dict("records")
    one = served.post("/v1/risk", json=rows[0])
    assert one.status_code == 200, one.text
    many = served.post("/v1/risk", json={"inputs": rows}).json()["outputs"]
    assert many[0] == one.json()
    for mine, theirs in zip(many, original.predict_proba(table), strict=True):
        expected = dict(zip(original.classes_, theirs, strict=True))
        assert {label["label"]: label["score"] for label in mine["labels"]} == pytest.approx(
            expected
        )
        assert mine["labels"][0]["score"] >= mine["labels"][1]["score"]


def test_the_regressor_answers_with_a_value(served):
    from sklearn.datasets import load_diabetes

    names = load_diabetes().feature_names
    row = dict(zip(names, map(float, DIABETES[0][0]), strict=True))
    response = served.post("/v1/progress", json=row)
    assert response.status_code == 200, response.text
    assert 20 < response.json()["value"] < 350


def test_values_that_do_not_fit_the_columns_are_refused(served):
    row = {"age": 40.0, "income (k€)": 30.0, "plan": "basic", "country": "DE"}
    assert served.post("/v1/risk", json=row).status_code == 200
    for wrong in (
        {**row, "plan": "gold"},  # scikit-learn would refuse it too
        {**row, "age": "forty"},
        {**row, "shoe size": 43},
        {key: value for key, value in row.items() if key != "age"},
    ):
        assert served.post("/v1/risk", json=wrong).status_code == 422
    assert served.post("/v1/risk", json={**row, "country": ""}).status_code == 200


def test_missing_values_over_grpc_and_in_json(served, models):
    """NaN and U+FDD0 over gRPC, null in JSON; an empty text is none of them."""
    original = load_skops(models / "risk.skops")[0]
    sent = {"age": np.nan, "income (k€)": 30.0, "plan": "plus", "country": "\ufdd0"}
    tensors = []
    for name, value in sent.items():
        is_text = isinstance(value, str)
        tensor = triton.InferInput(name, [1, 1], "BYTES" if is_text else "FP64")
        value = np.array([[value.encode()]], dtype=object) if is_text else np.array([[value]])
        tensor.set_data_from_numpy(value)
        tensors.append(tensor)
    with triton.InferenceServerClient(served.grpc_address) as client:
        result = client.infer("risk", tensors)
    row = customers()[0].head(1).assign(**{**sent, "country": np.nan})
    expected = pytest.approx(sorted(original.predict_proba(row)[0], reverse=True))
    assert result.as_numpy("score")[0] == expected
    body = {**sent, "age": None, "country": None}
    response = served.post("/v1/risk", json=body)
    assert [label["score"] for label in response.json()["labels"]] == expected
    empty = served.post("/v1/risk", json={**body, "country": ""}).json()["labels"]
    of_empty = original.predict_proba(row.assign(country=""))[0]
    assert [label["score"] for label in empty] == pytest.approx(sorted(of_empty, reverse=True))
    assert [label["score"] for label in empty] != expected


def test_the_proof_is_kept_and_a_planted_fault_is_found(served, models):
    engine = served.home / "model_repository" / "risk_onnx" / "1"
    proof = json.loads((engine / "proof.json").read_text())
    assert proof["passed"]
    assert any(
        "batch invariance, served" in c["name"] for p in proof["proofs"] for c in p["checks"]
    )
    graph = onnx.load(engine / "model.onnx")
    names = next(item for item in graph.graph.initializer if item.name.endswith("label_names"))
    swapped = np.array([item.decode() for item in names.string_data][::-1], dtype=object)
    names.CopyFrom(numpy_helper.from_array(swapped, names.name))
    whole = (engine / "model.onnx").read_bytes()
    onnx.save(graph, engine / "model.onnx")
    try:
        run = tidegate(
            served.home, "prove", "risk", "--against", str(models / "risk.skops"),
            "--samples", str(models / "risk.csv"),
        )  # fmt: skip
    finally:
        (engine / "model.onnx").write_bytes(whole)
    assert run.returncode == 1
    assert "line 2 of risk.csv" in run.stdout or "threshold of" in run.stdout
    assert "original" in run.stdout


def test_a_bad_file_leaves_nothing_behind(tmp_path):
    (tmp_path / "model.pkl").write_bytes(b"\x80\x04K\x01.")
    run = tidegate(tmp_path, "convert", str(tmp_path / "model.pkl"), "--name", "risk")
    assert run.returncode == 1
    assert "skops.io.dump" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "model_repository").exists()
