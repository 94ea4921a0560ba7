"""The reference is the call that the user makes: what is served is compared with it on fresh rows,
which neither the samples nor the proof have seen."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from converters.errors import SourceRefused
from tests.tables_in_process import built, failed, numbered, opened, served

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightgbm
    import xgboost

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
DRAW = np.random.default_rng(5)
ROWS = DRAW.normal(size=(500, 4)) * [1, 10, 100, 0.1]
NOISE = DRAW.normal(size=500)
VALUES = ROWS[:, 0] * 3 + ROWS[:, 1] / 5 + 2 * NOISE
CLASSES = (VALUES > 0).astype(int)
THREE = np.digitize(VALUES, [-2, 2])
FRESH = np.random.default_rng(6).normal(size=(400, 4)) * [1, 10, 100, 0.1]
NAMES = ("f0", "f1", "f2", "f3")
STOPPED = {"n_estimators": 60, "early_stopping_rounds": 3, "n_jobs": 1}
TRAIN, EVAL = slice(0, 300), slice(300, 500)


def _stopped(kind, answers, **settings):
    model = getattr(xgboost, kind)(**STOPPED, **settings)
    groups = {"qid": np.arange(300) // 20, "eval_qid": [np.arange(200) // 20]}
    return model.fit(
        ROWS[TRAIN],
        answers[TRAIN],
        eval_set=[(ROWS[EVAL], answers[EVAL])],
        verbose=False,
        **(groups if kind == "XGBRanker" else {}),
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


def _called(model, rows, **given):
    ask = model.predict_proba if hasattr(model, "predict_proba") else model.predict
    return np.asarray(ask(rows, **given)).reshape(len(rows), -1)


@pytest.mark.parametrize("ending", ["json", "ubj"])
@pytest.mark.parametrize("name", EARLY)
def test_early_stopping_is_served_as_its_estimator_answers(tmp_path, name, ending):
    kind, answers, settings = EARLY[name]
    model = _stopped(kind, answers, **settings)
    assert model.best_iteration + 1 < model.get_booster().num_boosted_rounds()
    model.save_model(tmp_path / f"m.{ending}")
    loaded = getattr(xgboost, kind)()
    loaded.load_model(tmp_path / f"m.{ending}")
    task = opened(tmp_path / f"m.{ending}")
    reference = built(task, tmp_path / "c")
    assert failed(task, reference) == []
    assert served(reference, numbered(FRESH, NAMES)) == pytest.approx(
        _called(loaded, FRESH), abs=1e-5
    )
    best = f"rounds 0 to {model.best_iteration} of"
    assert any(best in note for note in task.exercised(reference))
    assert any(best in remark for remark in task.card()["remarks"])


@pytest.mark.parametrize("asked", ["all", "best", "2:7"])
def test_an_iteration_range_is_served_as_asked(tmp_path, asked):
    model = _stopped("XGBClassifier", CLASSES)
    model.save_model(tmp_path / "m.json")
    rounds = model.get_booster().num_boosted_rounds()
    ranges = {"all": (0, rounds), "best": (0, model.best_iteration + 1), "2:7": (2, 7)}
    task = opened(tmp_path / "m.json", {"iteration_range": asked})
    reference = built(task, tmp_path / "c")
    assert failed(task, reference) == []
    wanted = _called(model, FRESH, iteration_range=ranges[asked])
    assert served(reference, numbered(FRESH, NAMES)) == pytest.approx(wanted, abs=1e-5)


def test_a_booster_answers_with_all_rounds_and_says_so(tmp_path):
    sets = [xgboost.DMatrix(ROWS[part], CLASSES[part]) for part in (TRAIN, EVAL)]
    settings = {"objective": "binary:logistic", "nthread": 1}
    booster = xgboost.train(
        settings, sets[0], 60, evals=[(sets[1], "e")], early_stopping_rounds=3, verbose_eval=False
    )
    booster.save_model(tmp_path / "m.json")
    task = opened(tmp_path / "m.json")
    reference = built(task, tmp_path / "c")
    wanted = booster.predict(xgboost.DMatrix(FRESH))
    assert served(reference, numbered(FRESH, NAMES))[:, 1] == pytest.approx(wanted, abs=1e-5)
    assert any("--iteration-range best" in note for note in task.exercised(reference))


def test_best_ntree_limit_of_an_old_file_is_asked(tmp_path):
    model = _stopped("XGBClassifier", CLASSES)
    model.save_model(tmp_path / "m.json")
    held = json.loads((tmp_path / "m.json").read_text())
    attributes = held["learner"]["attributes"]
    attributes["best_ntree_limit"] = str(int(attributes.pop("best_iteration")) + 1)
    (tmp_path / "m.json").write_text(json.dumps(held))
    with pytest.raises(SourceRefused, match="--iteration-range"):
        opened(tmp_path / "m.json")
    assert opened(tmp_path / "m.json", {"iteration_range": "0:5"})


@pytest.mark.parametrize("missing", ["-999", "0"])
def test_the_number_that_stands_for_a_missing_one_is_asked(tmp_path, missing):
    mark = float(missing)
    holes = np.random.default_rng(1).random((500, 4)) < 0.3
    rows, fresh = np.where(holes, mark, ROWS), np.where(holes[:400], mark, FRESH)
    model = xgboost.XGBClassifier(n_estimators=20, missing=mark, n_jobs=1).fit(rows, CLASSES)
    model.save_model(tmp_path / "m.json")
    task = opened(tmp_path / "m.json", {"missing": missing})
    reference = built(task, tmp_path / "c")
    assert failed(task, reference) == []
    got = served(reference, numbered(fresh, NAMES))
    assert got == pytest.approx(model.predict_proba(fresh), abs=1e-5)
    assert any(f"{missing} (--missing)" in note for note in task.exercised(reference))


@pytest.mark.parametrize("ending", ["json", "ubj"])
@pytest.mark.parametrize("mark", [-999.0, 0.0, np.nan])
@pytest.mark.parametrize("written", ["estimator", "booster"])
def test_what_stands_for_a_missing_number_must_be_said(tmp_path, mark, written, ending):
    """The file is the same whichever it was."""
    holes = np.random.default_rng(1).random((500, 4)) < 0.1
    rows = np.where(holes, mark, ROWS)
    model = xgboost.XGBClassifier(n_estimators=10, missing=mark, n_jobs=1).fit(rows, CLASSES)
    saved = model if written == "estimator" else model.get_booster()
    saved.save_model(tmp_path / f"m.{ending}")
    with pytest.raises(SourceRefused, match=r"add --missing nan if .* --missing VALUE if"):
        opened(tmp_path / f"m.{ending}")
    assert opened(tmp_path / f"m.{ending}", {"missing": str(mark)}).model.labels == ("0", "1")


def test_trained_on_a_sparse_matrix_0_must_be_said(tmp_path):
    counts = np.random.default_rng(3).poisson(0.4, (500, 4)).astype(float)
    answers = counts @ [1, -2, 3, 1] + NOISE
    model = xgboost.XGBRegressor(n_estimators=15, n_jobs=1).fit(csr_matrix(counts), answers)
    model.save_model(tmp_path / "m.json")
    with pytest.raises(SourceRefused, match="--missing 0 if on a sparse matrix"):
        opened(tmp_path / "m.json")
    task = opened(tmp_path / "m.json", {"missing": "0"})
    reference = built(task, tmp_path / "c")
    assert failed(task, reference) == []
    fresh = np.random.default_rng(4).poisson(0.4, (300, 4)).astype(float)
    got = served(reference, numbered(fresh, NAMES))[:, 0]
    assert got == pytest.approx(model.predict(csr_matrix(fresh)), abs=1e-4)


@pytest.mark.parametrize("method", ["hist", "exact", "approx"])
@pytest.mark.parametrize("booster", ["gbtree", "dart", "gblinear"])
def test_a_model_that_met_nothing_missing_is_asked_nothing(tmp_path, method, booster):
    settings = {} if booster == "gblinear" else {"tree_method": method}
    model = xgboost.XGBRegressor(n_estimators=20, n_jobs=1, booster=booster, **settings)
    model.fit(ROWS, VALUES).save_model(tmp_path / "m.json")
    said = opened(tmp_path / "m.json").model.remarks
    assert any("NaN" in remark and "give --missing VALUE" in remark for remark in said)


def test_missing_is_for_xgboost_alone(tmp_path):
    lightgbm.train({"verbose": -1}, lightgbm.Dataset(ROWS, VALUES), 3).save_model(
        tmp_path / "m.txt"
    )
    with pytest.raises(SourceRefused, match="LightGBM model, which does not take --missing"):
        opened(tmp_path / "m.txt", {"missing": "-999"})


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
    answers, settings = OTHERS[objective]
    data = xgboost.DMatrix(ROWS, answers)
    if objective == "survival:aft":
        data = xgboost.DMatrix(ROWS)
        data.set_float_info("label_lower_bound", answers)
        data.set_float_info("label_upper_bound", answers)
    booster = xgboost.train({"objective": objective, "nthread": 1, **settings}, data, 8)
    booster.save_model(tmp_path / "m.json")
    task = opened(tmp_path / "m.json")
    reference = built(task, tmp_path / "c")
    assert failed(task, reference) == []
    wanted = booster.predict(xgboost.DMatrix(FRESH))
    assert served(reference, numbered(FRESH, NAMES))[:, -1] == pytest.approx(
        wanted, rel=1e-5, abs=1e-5
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
    task = opened(tmp_path / "m.txt")
    reference = built(task, tmp_path / "c")
    assert failed(task, reference) == []
    names = [f"Column_{place}" for place in range(3)]
    got = served(reference, numbered(rows[500:], names))
    assert got == pytest.approx(model.predict_proba(rows[500:]), abs=1e-5)


@pytest.mark.parametrize("objective", ["multiclassova", "lambdarank", "rank_xendcg"])
def test_lightgbm_one_against_the_rest_and_rankers(tmp_path, objective):
    settings = {"objective": objective, "verbose": -1, "num_threads": 1, "sigmoid": 2.0}
    ranks = objective != "multiclassova"
    data = lightgbm.Dataset(ROWS, THREE, group=[20] * 25 if ranks else None)
    model = lightgbm.train(settings | ({} if ranks else {"num_class": 3}), data, 12)
    model.save_model(tmp_path / "m.txt")
    task = opened(tmp_path / "m.txt")
    reference = built(task, tmp_path / "c")
    assert failed(task, reference) == []
    got = served(reference, numbered(FRESH, [f"Column_{place}" for place in range(4)]))
    assert got == pytest.approx(model.predict(FRESH).reshape(len(FRESH), -1), abs=1e-5)


def test_named_columns_go_to_xgboost_by_name(tmp_path):
    frame = pd.DataFrame(ROWS, columns=["a", "b c", "d", "ü"])
    model = xgboost.XGBRegressor(n_estimators=5, n_jobs=1).fit(frame, VALUES)
    model.save_model(tmp_path / "m.json")
    task = opened(tmp_path / "m.json")
    reference = built(task, tmp_path / "c")
    got = served(reference, numbered(FRESH, list(frame.columns)))
    wanted = model.predict(pd.DataFrame(FRESH, columns=frame.columns))
    assert got[:, 0] == pytest.approx(wanted, rel=1e-5, abs=1e-5)
