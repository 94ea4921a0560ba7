"""Limits scale with the spread of the original's own predictions: targets of 1e-6 and of 1e8
alike."""

import warnings

import numpy as np
import onnx
import pytest
import skops.io
from onnx import helper, numpy_helper
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from tests.tables_in_process import (
    build_reference,
    failed_checks,
    graph_scores,
    named_columns,
    open_task,
)
from tests.tiny_tabular_models import DIABETES

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightgbm
    import xgboost

SCALES = (1e-8, 1e-6, 1.0, 1e8)


def _save_booster(folder, scale, offset=0.0, trees=20):
    rows, values = DIABETES
    model = xgboost.XGBRegressor(n_estimators=trees, max_depth=3, n_jobs=1)
    model.fit(rows, values * scale + offset).save_model(folder / "m.json")
    return folder / "m.json"


@pytest.fixture(scope="module", params=SCALES)
def tiny(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scale")
    # XGBoost itself makes no splits for targets this small.
    rows, values = DIABETES
    model = GradientBoostingRegressor(n_estimators=20, max_depth=3)
    skops.io.dump(model.fit(rows, values * request.param), folder / "m.skops")
    task = open_task(folder / "m.skops")
    reference = build_reference(task, folder / "c")
    assert failed_checks(task, reference) == []
    return task, reference


def _multiplied(graph, factor):
    graph.initializer.append(numpy_helper.from_array(np.float32(factor), "factor"))
    last = next(node for node in graph.node if "value" in node.output)
    last.output[0] = "plain"
    graph.node.append(helper.make_node("Mul", ["plain", "factor"], ["value"]))


def _without_a_tree(graph):
    """The leaves of one tree become 0."""
    trees = next(node for node in graph.node if node.op_type.startswith("TreeEnsemble"))
    attributes = {attribute.name: attribute for attribute in trees.attribute}
    weights = numpy_helper.to_array(attributes["target_weights_as_tensor"].t).copy()
    weights[np.array(attributes["target_treeids"].ints) == 0] = 0
    attributes["target_weights_as_tensor"].t.CopyFrom(numpy_helper.from_array(weights, "weights"))


FAULTS = {
    "zero": lambda graph: _multiplied(graph, 0),
    "negated": lambda graph: _multiplied(graph, -1),
    "ten times": lambda graph: _multiplied(graph, 10),
    "a thousandth more": lambda graph: _multiplied(graph, 1.001),
    "a tree left out": _without_a_tree,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught_at_every_scale(tiny, tmp_path, fault):
    task, reference = tiny
    model = onnx.load(reference.folder / "model.onnx")
    FAULTS[fault](model.graph)
    onnx.save(model, tmp_path / "bad.onnx")
    assert [
        check for check in task.prove_graph(tmp_path / "bad.onnx", reference) if not check.passed
    ]


GOOD = {
    "large with little spread": (1.0, 1e5),
    "small with an offset": (1e-6, 1.0),
    # XGBoost adds each tree to the base score in FP32.
    "of 1e5 with 400 trees": (1.0, 1e5, 400),
    "of 1e6 with 400 trees": (1.0, 1e6, 400),
}


@pytest.mark.parametrize("name", GOOD)
def test_fp32_rounding_is_not_a_fault(tmp_path, name):
    task = open_task(_save_booster(tmp_path, *GOOD[name]))
    assert failed_checks(task, build_reference(task, tmp_path / "c")) == []


def test_an_original_whose_rounding_is_as_large_as_its_spread_proves_nothing(tmp_path):
    task = open_task(_save_booster(tmp_path, 1.0, 1e7, 400))
    checks = failed_checks(task, build_reference(task, tmp_path / "c"))
    assert any("share of the spread that is error" in check for check in checks)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught_despite_the_originals_own_rounding(tmp_path, fault):
    task = open_task(_save_booster(tmp_path, 1.0, 1e5, 100))
    reference = build_reference(task, tmp_path / "c")
    model = onnx.load(reference.folder / "model.onnx")
    FAULTS[fault](model.graph)
    onnx.save(model, tmp_path / "bad.onnx")
    assert [
        check for check in task.prove_graph(tmp_path / "bad.onnx", reference) if not check.passed
    ]


@pytest.mark.parametrize("scale", SCALES)
def test_lightgbm_and_scikit_learn_at_every_scale(tmp_path, scale):
    rows, values = DIABETES
    lightgbm.LGBMRegressor(n_estimators=20, verbose=-1, n_jobs=1).fit(
        rows, values * scale
    ).booster_.save_model(tmp_path / "m.txt")
    boosting = GradientBoostingRegressor(n_estimators=20).fit(rows, values * scale)
    skops.io.dump(boosting, tmp_path / "m.skops")
    for file in ("m.txt", "m.skops"):
        task = open_task(tmp_path / file)
        assert failed_checks(task, build_reference(task, tmp_path / "c")) == []


@pytest.mark.parametrize("norm", ["max", "l1", "l2"])
@pytest.mark.parametrize("scale", [1.0, 1e-8])
def test_a_normalizer_computes_as_scikit_learn_does(tmp_path, norm, scale):
    """ONNX Runtime's Normalizer divides by the largest number, scikit-learn by the largest
    magnitude."""
    rows, values = DIABETES
    model = make_pipeline(StandardScaler(), Normalizer(norm), Ridge()).fit(rows, values * scale)
    skops.io.dump(model, tmp_path / "m.skops")
    task = open_task(tmp_path / "m.skops")
    reference = build_reference(task, tmp_path / "c")
    assert failed_checks(task, reference) == []
    actual = graph_scores(reference, named_columns(rows, [f"f{index}" for index in range(10)]))
    assert actual[:, 0] == pytest.approx(model.predict(rows), rel=1e-5)
