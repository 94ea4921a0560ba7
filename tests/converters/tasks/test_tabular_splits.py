"""Faults in single splits of trees: a threshold that is 0.5 % off, swapped children, the other way
for missing numbers. The proof detects each that any row shows."""

import re
from dataclasses import dataclass

import lightgbm
import numpy as np
import onnx
import pandas as pd
import pytest
import xgboost
from onnx import numpy_helper
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    BaggingClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier

from converters.conversion import reference_in
from converters.errors import SourceRefused
from converters.proof.reference import Reference
from converters.sources.tabular_file import open_model
from converters.table import Table
from converters.tasks.tabular.checks import TableGraph, split_checks
from converters.tasks.tabular.rows import generated_rows, partition_by_answer
from converters.tasks.tabular.task import TabularTask
from tests.tables_in_process import build_reference, failed_checks, graph_scores, open_task
from tests.tiny_tabular_models import save

PLACES = 4
RNG = np.random.default_rng(3)
NUMBERS = RNG.normal(size=(300, 4)) * [1, 100, 1e4, 0.01]
GAPS = np.where(RNG.random(NUMBERS.shape) < 0.1, np.nan, NUMBERS)
TARGET = ((NUMBERS[:, 0] + NUMBERS[:, 1] / 80 + np.sin(NUMBERS[:, 3] * 200)) > 0).astype(int)
CITIES = pd.DataFrame(
    {"city": RNG.choice(["Oslo", "Rome", "Wien", "Bern", "Riga"], 300), "age": NUMBERS[:, 1]}
)
BY_CITY = (CITIES.city.isin(["Oslo", "Riga"]) ^ (CITIES.age > 30)).astype(int)
FOREST = RandomForestClassifier(8, max_depth=6, random_state=0)
BOOSTED = GradientBoostingClassifier(n_estimators=8, random_state=0)
SKLEARN = {
    "boosted": (BOOSTED, NUMBERS, np.array(["no", "yes"])[TARGET]),
    "histogram": (HistGradientBoostingClassifier(max_iter=10), GAPS, TARGET),
    "bag": (
        BaggingClassifier(DecisionTreeClassifier(), 5, max_features=0.75, random_state=0),
        NUMBERS,
        TARGET,
    ),
    "vote": (VotingClassifier([("a", FOREST), ("b", BOOSTED)], voting="soft"), NUMBERS, TARGET),
    "scaled": (make_pipeline(StandardScaler(), FOREST), NUMBERS, TARGET),
    "pca": (make_pipeline(StandardScaler(), PCA(3), FOREST), NUMBERS, TARGET),
    "one-hot": (
        make_pipeline(
            make_column_transformer(
                (OneHotEncoder(handle_unknown="ignore"), ["city"]), ("passthrough", ["age"])
            ),
            FOREST,
        ),
        CITIES,
        BY_CITY,
    ),
}


@dataclass(frozen=True)
class Proved:
    task: TabularTask
    reference: Reference
    fresh: Table
    answers: np.ndarray


def categories_in_lightgbm(path):
    rows = CITIES.assign(city=CITIES.city.astype("category"))
    model = lightgbm.LGBMClassifier(
        n_estimators=10, num_leaves=6, min_child_samples=5, min_data_per_group=5, verbose=-1
    )
    model.fit(rows, BY_CITY).booster_.save_model(path)
    return path


@pytest.fixture(scope="module", params=[*SKLEARN, "xgboost", "lightgbm categories"])
def proved(request, tmp_path_factory) -> Proved:
    folder, options = tmp_path_factory.mktemp("splits"), None
    if request.param == "xgboost":
        path, options = folder / "m.json", {"missing": "nan"}
        xgboost.XGBClassifier(n_estimators=10, max_depth=4).fit(GAPS, TARGET).save_model(path)
    elif request.param == "lightgbm categories":
        path = categories_in_lightgbm(folder / "m.txt")
    else:
        model, rows, target = SKLEARN[request.param]
        path = save(model, folder / "m.skops", (rows, target))
    task = open_task(path, options)
    reference = build_reference(task, folder / "reference")
    assert failed_checks(task, reference) == []
    rows = generated_rows(task.explored, np.random.default_rng(7), 800)
    fresh = partition_by_answer(task.model, rows)[0]
    return Proved(task, reference, fresh, graph_scores(reference, fresh.columns))


def thresholds_off(node, place):
    tensor = _attribute(node, "nodes_values_as_tensor").t
    numbers = numpy_helper.to_array(tensor).copy()
    numbers[place] *= 1.005
    tensor.CopyFrom(numpy_helper.from_array(numbers, tensor.name))


def children_swapped(node, place):
    yes, no = (_attribute(node, f"nodes_{side}nodeids").ints for side in ("true", "false"))
    yes[place], no[place] = no[place], yes[place]


def missing_swapped(node, place):
    tracks = _attribute(node, "nodes_missing_value_tracks_true").ints
    tracks[place] = 1 - tracks[place]


def _attribute(node, name):
    return next(attribute for attribute in node.attribute if attribute.name == name)


@pytest.mark.parametrize("fault", [thresholds_off, children_swapped, missing_swapped])
def test_a_fault_in_one_split_is_detected(proved, fault, tmp_path):
    graph = onnx.load(proved.reference.folder / "model.onnx")
    ensembles = [node for node in graph.graph.node if node.op_type.startswith("TreeEnsemble")]
    undetected = []
    for ensemble in range(len(ensembles)):
        modes = _attribute(ensembles[ensemble], "nodes_modes").strings
        inner = [place for place, mode in enumerate(modes) if mode != b"LEAF"]
        chosen = np.random.default_rng(5).permutation(inner)[: max(1, PLACES // len(ensembles))]
        for place in chosen:
            broken = _with_fault(proved, ensemble, int(place), fault, tmp_path)
            checks = split_checks(TableGraph(broken.folder / "model.onnx", broken), broken)
            if all(check.passed for check in checks):
                scores = graph_scores(broken, proved.fresh.columns)
                difference = np.abs(scores - proved.answers).max()
                if difference > 1e-4 and not failed_checks(proved.task, broken):
                    undetected.append(f"ensemble {ensemble} split {place}: {difference:.2g}")
    assert undetected == []


def _with_fault(proved, ensemble, place, fault, folder) -> Reference:
    graph = onnx.load(proved.reference.folder / "model.onnx")
    nodes = [node for node in graph.graph.node if node.op_type.startswith("TreeEnsemble")]
    fault(nodes[ensemble], place)
    for name in ("original.npz", "metadata.json"):
        (folder / name).write_bytes((proved.reference.folder / name).read_bytes())
    onnx.save(graph, folder / "model.onnx")
    return reference_in(folder, "t", proved.task, "fp32")


def test_the_record_says_that_every_split_was_taken_both_ways(proved):
    """After PCA, a few of the generated rows do not reach every split."""
    note = proved.task.split_rows.note
    taken, total = map(int, note.partition(" took ")[2].partition(" splits")[0].split(" of "))
    assert taken == total or (taken > 0.7 * total and "not both ways: tree " in note)
    assert note in proved.task.exercised(proved.reference)


def test_a_split_between_any_number_and_a_missing_one(tmp_path):
    """Its threshold is infinite in LightGBM, and so are numbers beside it."""
    rng = np.random.default_rng(3)
    numbers = np.where(rng.random((600, 2)) < 0.3, np.nan, rng.lognormal(12, 1, (600, 2)))
    numbers[rng.random((600, 2)) < 0.3] = 0
    target = np.isnan(numbers) @ [5.0, 4.0] + np.nan_to_num(numbers[:, 1]) / 1e5
    model = lightgbm.LGBMRegressor(n_estimators=20, num_leaves=12, verbose=-1, n_jobs=1)
    model.fit(numbers, target).booster_.save_model(tmp_path / "m.txt")
    assert re.search("^threshold=.*inf", (tmp_path / "m.txt").read_text(), re.MULTILINE)
    task = open_task(tmp_path / "m.txt")
    reference = build_reference(task, tmp_path / "converted")
    assert "splits" in task.split_rows.note
    assert failed_checks(task, reference) == []


def test_a_lightgbm_file_that_lost_its_end_is_refused_or_the_same(tmp_path):
    """After 'end of trees' LightGBM reads a truncated file without a word."""
    whole = categories_in_lightgbm(tmp_path / "whole.txt")
    text, columns = whole.read_text(), open_model(whole).columns
    end = text.index("end of trees")
    cuts = [at for at in range(end, len(text)) if text[at] == "\n"]
    cut = tmp_path / "cut.txt"
    for at in [*cuts, *range(len(text) - 12, len(text))]:
        for length in (at, at + 1):
            cut.write_text(text[:length])
            try:
                assert open_model(cut).columns == columns, text[:length][-80:]
            except SourceRefused as refused:
                assert "truncated" in str(refused) or "pandas_categorical" in str(refused)
