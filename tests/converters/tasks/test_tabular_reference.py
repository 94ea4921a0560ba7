"""The reference is the call that the user makes: the served graph is compared with it on new rows,
which neither the samples nor the proof have seen."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from converters.errors import SourceRefused
from tests.tables_in_process import (
    build_reference,
    failed_checks,
    graph_scores,
    named_columns,
    open_task,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightgbm
    import xgboost

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
RNG = np.random.default_rng(5)
ROWS = RNG.normal(size=(500, 4)) * [1, 10, 100, 0.1]
NOISE = RNG.normal(size=500)
VALUES = ROWS[:, 0] * 3 + ROWS[:, 1] / 5 + 2 * NOISE
CLASSES = (VALUES > 0).astype(int)
THREE = np.digitize(VALUES, [-2, 2])
NEW_ROWS = np.random.default_rng(6).normal(size=(400, 4)) * [1, 10, 100, 0.1]
NAMES = ("f0", "f1", "f2", "f3")
STOPPED = {"n_estimators": 60, "early_stopping_rounds": 3, "n_jobs": 1}
TRAIN, EVAL = slice(0, 300), slice(300, 500)


def _stopped(class_name, targets, **settings):
    model = getattr(xgboost, class_name)(**STOPPED, **settings)
    groups = {"qid": np.arange(300) // 20, "eval_qid": [np.arange(200) // 20]}
    return model.fit(
        ROWS[TRAIN],
        targets[TRAIN],
        eval_set=[(ROWS[EVAL], targets[EVAL])],
        verbose=False,
        **(groups if class_name == "XGBRanker" else {}),
    )


EARLY = {
    "classifier": ("XGBClassifier", CLASSES, {}),
    "three classes": ("XGBClassifier", THREE, {"num_parallel_tree": 3, "subsample": 0.5}),
    "dart": ("XGBClassifier", CLASSES, {"booster": "dart", "rate_drop": 0.3}),
    "regressor": ("XGBRegressor", VALUES, {}),
    "regressor of chances": ("XGBRegressor", CLASSES, {"objective": "binary:logistic"}),
    "counts": ("XGBRegressor", np.abs(VALUES), {"objective": "count:poisson"}),
    "ranker": ("XGBRanker", CLASSES, {}),
}


def _predictions(model, rows, **options):
    predict = model.predict_proba if hasattr(model, "predict_proba") else model.predict
    return np.asarray(predict(rows, **options)).reshape(len(rows), -1)


@pytest.mark.parametrize("suffix", ["json", "ubj"])
@pytest.mark.parametrize("name", EARLY)
def test_early_stopping_is_served_as_its_estimator_predicts(tmp_path, name, suffix):
    class_name, targets, settings = EARLY[name]
    model = _stopped(class_name, targets, **settings)
    assert model.best_iteration + 1 < model.get_booster().num_boosted_rounds()
    model.save_model(tmp_path / f"m.{suffix}")
    loaded = getattr(xgboost, class_name)()
    loaded.load_model(tmp_path / f"m.{suffix}")
    task = open_task(tmp_path / f"m.{suffix}")
    reference = build_reference(task, tmp_path / "c")
    assert failed_checks(task, reference) == []
    assert graph_scores(reference, named_columns(NEW_ROWS, NAMES)) == pytest.approx(
        _predictions(loaded, NEW_ROWS), abs=1e-5
    )
    best = f"rounds 0 to {model.best_iteration} of"
    assert any(best in note for note in task.exercised(reference))
    assert any(best in remark for remark in task.card()["remarks"])


@pytest.mark.parametrize("requested", ["all", "best", "2:7"])
def test_an_iteration_range_is_served_as_requested(tmp_path, requested):
    model = _stopped("XGBClassifier", CLASSES)
    model.save_model(tmp_path / "m.json")
    rounds = model.get_booster().num_boosted_rounds()
    ranges = {"all": (0, rounds), "best": (0, model.best_iteration + 1), "2:7": (2, 7)}
    task = open_task(tmp_path / "m.json", {"iteration_range": requested})
    reference = build_reference(task, tmp_path / "c")
    assert failed_checks(task, reference) == []
    expected = _predictions(model, NEW_ROWS, iteration_range=ranges[requested])
    assert graph_scores(reference, named_columns(NEW_ROWS, NAMES)) == pytest.approx(
        expected, abs=1e-5
    )


def test_a_booster_predicts_with_all_rounds_and_the_note_says_so(tmp_path):
    sets = [xgboost.DMatrix(ROWS[part], CLASSES[part]) for part in (TRAIN, EVAL)]
    settings = {"objective": "binary:logistic", "nthread": 1}
    booster = xgboost.train(
        settings, sets[0], 60, evals=[(sets[1], "e")], early_stopping_rounds=3, verbose_eval=False
    )
    booster.save_model(tmp_path / "m.json")
    task = open_task(tmp_path / "m.json")
    reference = build_reference(task, tmp_path / "c")
    expected = booster.predict(xgboost.DMatrix(NEW_ROWS))
    assert graph_scores(reference, named_columns(NEW_ROWS, NAMES))[:, 1] == pytest.approx(
        expected, abs=1e-5
    )
    assert any("--iteration-range best" in note for note in task.exercised(reference))


def test_an_old_file_with_best_ntree_limit_needs_an_iteration_range(tmp_path):
    model = _stopped("XGBClassifier", CLASSES)
    model.save_model(tmp_path / "m.json")
    document = json.loads((tmp_path / "m.json").read_text())
    attributes = document["learner"]["attributes"]
    attributes["best_ntree_limit"] = str(int(attributes.pop("best_iteration")) + 1)
    (tmp_path / "m.json").write_text(json.dumps(document))
    with pytest.raises(SourceRefused, match="--iteration-range"):
        open_task(tmp_path / "m.json")
    assert open_task(tmp_path / "m.json", {"iteration_range": "0:5"})


@pytest.mark.parametrize("missing", ["-999", "0"])
def test_the_number_that_means_missing_is_an_option(tmp_path, missing):
    mark = float(missing)
    missing_cells = np.random.default_rng(1).random((500, 4)) < 0.3
    rows, new_rows = (
        np.where(missing_cells, mark, ROWS),
        np.where(missing_cells[:400], mark, NEW_ROWS),
    )
    model = xgboost.XGBClassifier(n_estimators=20, missing=mark, n_jobs=1).fit(rows, CLASSES)
    model.save_model(tmp_path / "m.json")
    task = open_task(tmp_path / "m.json", {"missing": missing})
    reference = build_reference(task, tmp_path / "c")
    assert failed_checks(task, reference) == []
    actual = graph_scores(reference, named_columns(new_rows, NAMES))
    assert actual == pytest.approx(model.predict_proba(new_rows), abs=1e-5)
    assert any(f"{missing} (--missing)" in note for note in task.exercised(reference))


@pytest.mark.parametrize("suffix", ["json", "ubj"])
@pytest.mark.parametrize("mark", [-999.0, 0.0, np.nan])
@pytest.mark.parametrize("saved_as", ["estimator", "booster"])
def test_the_number_that_means_missing_must_be_given(tmp_path, mark, saved_as, suffix):
    """The file is the same for every such number."""
    missing_cells = np.random.default_rng(1).random((500, 4)) < 0.1
    rows = np.where(missing_cells, mark, ROWS)
    model = xgboost.XGBClassifier(n_estimators=10, missing=mark, n_jobs=1).fit(rows, CLASSES)
    saved = model if saved_as == "estimator" else model.get_booster()
    saved.save_model(tmp_path / f"m.{suffix}")
    with pytest.raises(SourceRefused, match=r"add --missing nan if .* --missing VALUE if"):
        open_task(tmp_path / f"m.{suffix}")
    assert open_task(tmp_path / f"m.{suffix}", {"missing": str(mark)}).model.labels == ("0", "1")


def test_missing_0_must_be_given_after_training_on_a_sparse_matrix(tmp_path):
    counts = np.random.default_rng(3).poisson(0.4, (500, 4)).astype(float)
    targets = counts @ [1, -2, 3, 1] + NOISE
    model = xgboost.XGBRegressor(n_estimators=15, n_jobs=1).fit(csr_matrix(counts), targets)
    model.save_model(tmp_path / "m.json")
    with pytest.raises(SourceRefused, match="--missing 0 if on a sparse matrix"):
        open_task(tmp_path / "m.json")
    task = open_task(tmp_path / "m.json", {"missing": "0"})
    reference = build_reference(task, tmp_path / "c")
    assert failed_checks(task, reference) == []
    new_counts = np.random.default_rng(4).poisson(0.4, (300, 4)).astype(float)
    actual = graph_scores(reference, named_columns(new_counts, NAMES))[:, 0]
    assert actual == pytest.approx(model.predict(csr_matrix(new_counts)), abs=1e-4)


@pytest.mark.parametrize("method", ["hist", "exact", "approx"])
@pytest.mark.parametrize("booster", ["gbtree", "dart", "gblinear"])
def test_a_model_trained_without_missing_numbers_needs_no_option(tmp_path, method, booster):
    settings = {} if booster == "gblinear" else {"tree_method": method}
    model = xgboost.XGBRegressor(n_estimators=20, n_jobs=1, booster=booster, **settings)
    model.fit(ROWS, VALUES).save_model(tmp_path / "m.json")
    remarks = open_task(tmp_path / "m.json").model.remarks
    assert any("NaN" in remark and "give --missing VALUE" in remark for remark in remarks)


def test_missing_is_an_option_of_xgboost_only(tmp_path):
    lightgbm.train({"verbose": -1}, lightgbm.Dataset(ROWS, VALUES), 3).save_model(
        tmp_path / "m.txt"
    )
    with pytest.raises(SourceRefused, match="LightGBM model, which does not take --missing"):
        open_task(tmp_path / "m.txt", {"missing": "-999"})


OTHERS = {
    "binary:hinge": (CLASSES, {}),
    "binary:logitraw": (CLASSES, {}),
    "survival:cox": (np.abs(VALUES), {}),
    "survival:aft": (np.abs(VALUES) + 1, {}),
    "rank:pairwise": (CLASSES, {}),
    "reg:squarederror": (VALUES, {"booster": "gblinear"}),
    "binary:logistic": (CLASSES, {"booster": "gblinear"}),
}


@pytest.mark.parametrize("objective", OTHERS)
def test_other_objectives_and_boosters(tmp_path, objective):
    targets, settings = OTHERS[objective]
    data = xgboost.DMatrix(ROWS, targets)
    if objective == "survival:aft":
        data = xgboost.DMatrix(ROWS)
        data.set_float_info("label_lower_bound", targets)
        data.set_float_info("label_upper_bound", targets)
    booster = xgboost.train({"objective": objective, "nthread": 1, **settings}, data, 8)
    booster.save_model(tmp_path / "m.json")
    task = open_task(tmp_path / "m.json")
    reference = build_reference(task, tmp_path / "c")
    assert failed_checks(task, reference) == []
    expected = booster.predict(xgboost.DMatrix(NEW_ROWS))
    assert graph_scores(reference, named_columns(NEW_ROWS, NAMES))[:, -1] == pytest.approx(
        expected, rel=1e-5, abs=1e-5
    )


LARGE = {
    "seconds": lambda n: 1.7e9 + n,
    "nanoseconds": lambda n: 1.7e18 + n * 1024,
    "close together": lambda n: 1e6 + n * 1e-6,
    "huge": lambda n: (n - 200) * 1e300,
}


@pytest.mark.parametrize("name", LARGE)
def test_lightgbm_thresholds_that_fp32_cannot_tell_apart(tmp_path, name):
    numbers = np.random.default_rng(2).integers(0, 400, (900, 3)).astype(float)
    rows = LARGE[name](numbers)
    classes = ((numbers[:, 0] % 7 < 3) ^ (numbers[:, 1] % 90 < 45)).astype(int)
    model = lightgbm.LGBMClassifier(n_estimators=20, verbose=-1, n_jobs=1)
    model.fit(rows[:500], classes[:500]).booster_.save_model(tmp_path / "m.txt")
    task = open_task(tmp_path / "m.txt")
    reference = build_reference(task, tmp_path / "c")
    assert failed_checks(task, reference) == []
    names = [f"Column_{index}" for index in range(3)]
    actual = graph_scores(reference, named_columns(rows[500:], names))
    assert actual == pytest.approx(model.predict_proba(rows[500:]), abs=1e-5)


@pytest.mark.parametrize("objective", ["multiclassova", "lambdarank", "rank_xendcg"])
def test_lightgbm_one_against_the_rest_and_rankers(tmp_path, objective):
    settings = {"objective": objective, "verbose": -1, "num_threads": 1, "sigmoid": 2.0}
    is_ranker = objective != "multiclassova"
    data = lightgbm.Dataset(ROWS, THREE, group=[20] * 25 if is_ranker else None)
    model = lightgbm.train(settings | ({} if is_ranker else {"num_class": 3}), data, 12)
    model.save_model(tmp_path / "m.txt")
    task = open_task(tmp_path / "m.txt")
    reference = build_reference(task, tmp_path / "c")
    assert failed_checks(task, reference) == []
    actual = graph_scores(
        reference, named_columns(NEW_ROWS, [f"Column_{index}" for index in range(4)])
    )
    assert actual == pytest.approx(model.predict(NEW_ROWS).reshape(len(NEW_ROWS), -1), abs=1e-5)


def test_named_columns_go_to_xgboost_by_name(tmp_path):
    frame = pd.DataFrame(ROWS, columns=["a", "b c", "d", "ü"])
    model = xgboost.XGBRegressor(n_estimators=5, n_jobs=1).fit(frame, VALUES)
    model.save_model(tmp_path / "m.json")
    task = open_task(tmp_path / "m.json")
    reference = build_reference(task, tmp_path / "c")
    actual = graph_scores(reference, named_columns(NEW_ROWS, list(frame.columns)))
    expected = model.predict(pd.DataFrame(NEW_ROWS, columns=frame.columns))
    assert actual[:, 0] == pytest.approx(expected, rel=1e-5, abs=1e-5)
