"""Each library's models, converted and compared with the library itself, at thresholds too."""

import json
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from converters.conversion import reference_in
from converters.errors import ConversionError, SourceRefused
from converters.task import ConversionRequest
from converters.tasks.tabular.task import TabularClassification, TabularRegression

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # their imports warn about each other's deprecated names
    import lightgbm
    import skl2onnx  # noqa: F401
    import skops.io
    import xgboost

from sklearn import ensemble, linear_model, neighbors, svm, tree
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, RobustScaler, StandardScaler

from tests.tiny_tabular_models import CANCER, DIABETES, WINE, customer_pipeline, customers, save

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def _graph_checks(task, folder):
    """The checks of the task's own graph, with the library running in this process."""
    rows = task.rows
    folder.mkdir(exist_ok=True)
    task.export(folder / "model.onnx")
    np.savez(folder / "original.npz", **rows.arrays(), answers=task.model.scores(rows))
    (folder / "metadata.json").write_text(json.dumps(task.metadata()))
    reference = reference_in(folder, "table", task, "fp32")
    return task.prove_graph(folder / "model.onnx", reference)


CLASSIFIERS = {
    "logistic": (make_pipeline(StandardScaler(), linear_model.LogisticRegression()), CANCER),
    "tree": (tree.DecisionTreeClassifier(), WINE),
    "forest": (ensemble.RandomForestClassifier(7), WINE),
    "scaled forest": (make_pipeline(StandardScaler(), ensemble.ExtraTreesClassifier(7)), CANCER),
    "boosting": (ensemble.GradientBoostingClassifier(n_estimators=5), CANCER),
    "boosting of three": (ensemble.GradientBoostingClassifier(n_estimators=4), WINE),
    "exponential": (
        ensemble.GradientBoostingClassifier(n_estimators=4, loss="exponential"),
        CANCER,
    ),
    "histogram": (ensemble.HistGradientBoostingClassifier(max_iter=5), CANCER),
    "neighbours": (neighbors.KNeighborsClassifier(), WINE),
    "bag": (ensemble.BaggingClassifier(n_estimators=3), WINE),
    "customers": (customer_pipeline(), customers()),
    "customers, linear": (customer_pipeline(linear_model.LogisticRegression()), customers()),
}
REGRESSORS = {
    "ridge": linear_model.Ridge(),
    "imputed tree": make_pipeline(SimpleImputer(), MinMaxScaler(), tree.DecisionTreeRegressor()),
    "robust forest": make_pipeline(RobustScaler(), ensemble.RandomForestRegressor(5)),
    "boosting": ensemble.GradientBoostingRegressor(n_estimators=8),
    "histogram": ensemble.HistGradientBoostingRegressor(max_iter=8),
    "poisson": ensemble.HistGradientBoostingRegressor(max_iter=8, loss="poisson"),
    "support vectors": svm.SVR(),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_of_scikit_learn(tmp_path, name):
    model, data = CLASSIFIERS[name]
    task = TabularClassification(
        ConversionRequest("t", str(save(model, tmp_path / "m.skops", data)))
    )
    assert [check.line() for check in _graph_checks(task, tmp_path / "c") if not check.passed] == []


@pytest.mark.parametrize("name", REGRESSORS)
def test_regressors_of_scikit_learn(tmp_path, name):
    path = save(REGRESSORS[name], tmp_path / "m.skops", DIABETES)
    task = TabularRegression(ConversionRequest("t", str(path)))
    assert [check.line() for check in _graph_checks(task, tmp_path / "c") if not check.passed] == []


XGBOOST = {
    "binary:logistic": (CANCER, {}),
    "multi:softprob": (WINE, {"num_class": 3}),
    "multi:softmax": (WINE, {"num_class": 3}),
    "reg:squarederror": (DIABETES, {"booster": "dart", "rate_drop": 0.5}),
    "count:poisson": (DIABETES, {}),
    "reg:logistic": (CANCER, {"num_parallel_tree": 2, "subsample": 0.5}),
}
LIGHTGBM = {
    "binary": (CANCER, {"sigmoid": 2.0}),
    "multiclass": (WINE, {"num_class": 3}),
    "regression": (DIABETES, {"boosting": "dart"}),
    "poisson": (DIABETES, {}),
    "quantile": (DIABETES, {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5}),
}


def _booster_task(path):
    task_class = TabularClassification if _has_labels(path) else TabularRegression
    return task_class(ConversionRequest("t", str(path)))


def _has_labels(path) -> bool:
    from converters.sources.tabular_file import open_model

    return bool(open_model(path).labels)


@pytest.mark.parametrize("suffix", ["json", "ubj"])
@pytest.mark.parametrize("objective", XGBOOST)
def test_models_of_xgboost(tmp_path, objective, suffix):
    (rows, targets), settings = XGBOOST[objective]
    settings = {"objective": objective, "nthread": 1, "max_depth": 4, **settings}
    model = xgboost.train(settings, xgboost.DMatrix(rows, targets), 6)
    model.save_model(tmp_path / f"m.{suffix}")
    checks = _graph_checks(_booster_task(tmp_path / f"m.{suffix}"), tmp_path / "c")
    assert [check.line() for check in checks if not check.passed] == []


@pytest.mark.parametrize("objective", LIGHTGBM)
def test_models_of_lightgbm(tmp_path, objective):
    (rows, targets), settings = LIGHTGBM[objective]
    settings = {"objective": objective, "verbose": -1, "num_threads": 1, **settings}
    rows = np.where(np.random.default_rng(0).random(rows.shape) < 0.05, np.nan, rows)
    lightgbm.train(settings, lightgbm.Dataset(rows, targets), 6).save_model(tmp_path / "m.txt")
    checks = _graph_checks(_booster_task(tmp_path / "m.txt"), tmp_path / "c")
    assert [check.line() for check in checks if not check.passed] == []


def test_boundary_rows_are_at_the_models_own_jumps(tmp_path):
    """The rows at a jump: neighbouring FP64 numbers with different predictions."""
    path = save(tree.DecisionTreeRegressor(max_depth=3), tmp_path / "m.skops", DIABETES)
    task = TabularRegression(ConversionRequest("t", str(path)))
    below = [
        index for index, label in enumerate(task.rows.labels) if label.startswith("just below")
    ]
    above = [
        index for index, label in enumerate(task.rows.labels) if label.startswith("just above")
    ]
    assert len(below) == len(above) > 5
    answers = task.model.scores(task.rows)
    assert (np.abs(answers[below] - answers[above]) > 1).all()


def test_thresholds_rounded_to_fp32_are_caught(tmp_path):
    """What skl2onnx and onnxmltools do: the rows at the thresholds then fall on the other side."""
    rows, targets = DIABETES
    settings = {"objective": "regression", "verbose": -1, "num_threads": 1}
    lightgbm.train(settings, lightgbm.Dataset(rows, targets), 6).save_model(tmp_path / "m.txt")
    task = _booster_task(tmp_path / "m.txt")
    assert all(check.passed for check in _graph_checks(task, tmp_path / "c"))
    graph = onnx.load(tmp_path / "c" / "model.onnx")
    trees = next(node for node in graph.graph.node if node.op_type.startswith("TreeEnsemble"))
    attribute = next(a for a in trees.attribute if a.name == "nodes_values_as_tensor")
    thresholds = onnx.numpy_helper.to_array(attribute.t).astype(np.float32).astype(np.float64)
    attribute.t.CopyFrom(onnx.numpy_helper.from_array(thresholds, "thresholds"))
    onnx.save(graph, tmp_path / "c" / "model.onnx")
    reference = reference_in(tmp_path / "c", "table", task, "fp32")
    failed = [c for c in task.prove_graph(tmp_path / "c" / "model.onnx", reference) if not c.passed]
    assert failed
    assert "threshold of 'Column_" in failed[0].worst


class _CustomClassifier(ClassifierMixin, BaseEstimator):
    def fit(self, rows, answers):
        self.classes_, self.n_features_in_ = np.unique(answers), rows.shape[1]
        return self

    def predict_proba(self, rows):
        return np.ones((len(rows), len(self.classes_)))


class _Payload:
    def __reduce__(self):
        return (os.system, ("touch /tmp/tidegate-table-was-here",))


def _write_pickle(folder):
    (folder / "m.pkl").write_bytes(pickle.dumps(_Payload()))
    return folder / "m.pkl"


def _write_cut_off(folder):
    path = save(tree.DecisionTreeClassifier(), folder / "m.skops")
    os.truncate(path, path.stat().st_size // 2)
    return path


def _write_bomb(folder):
    with zipfile.ZipFile(folder / "m.skops", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", "{}")
        archive.writestr("big.npy", b"\0" * 50_000_000)
    return folder / "m.skops"


def _write_unknown_type(folder):
    return save(_CustomClassifier(), folder / "m.skops")


def _write_function(folder):
    """A file may not call a function of numpy's by naming it."""
    path = save(tree.DecisionTreeClassifier(), folder / "m.skops")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["schema.json"] = (
        members["schema.json"]
        .replace(b'"__class__": "DecisionTreeClassifier"', b'"__class__": "rundocs"')
        .replace(b'"__module__": "sklearn.tree._classes"', b'"__module__": "numpy.testing"')
    )
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def _write_invalid_node_numbers(folder):
    """A tree whose nodes lead out of it: scikit-learn itself would follow them."""
    model = tree.DecisionTreeClassifier().fit(*WINE)
    state = model.tree_.__getstate__()
    state["nodes"]["left_child"][0] = 10_000_000
    model.tree_.__setstate__(state)
    skops.io.dump(model, folder / "m.skops")
    return folder / "m.skops"


def _write_no_scores(folder):
    members = [("tree", tree.DecisionTreeClassifier()), ("ridge", linear_model.RidgeClassifier())]
    return save(ensemble.VotingClassifier(members), folder / "m.skops")


def _write_regressor(folder):
    return save(linear_model.Ridge(), folder / "m.skops", DIABETES)


def _write_unfitted(folder):
    skops.io.dump(tree.DecisionTreeClassifier(), folder / "m.skops")
    return folder / "m.skops"


def _write_cut_off_xgboost(folder):
    model = xgboost.train({"nthread": 1}, xgboost.DMatrix(*DIABETES), 2)
    model.save_model(folder / "m.json")
    os.truncate(folder / "m.json", 400)
    return folder / "m.json"


def _write_cut_off_lightgbm(folder):
    lightgbm.train({"verbose": -1}, lightgbm.Dataset(*DIABETES), 2).save_model(folder / "m.txt")
    os.truncate(folder / "m.txt", 900)
    return folder / "m.txt"


def _write_linear_trees(folder):
    settings = {"verbose": -1, "linear_tree": True, "num_threads": 1}
    lightgbm.train(settings, lightgbm.Dataset(*DIABETES), 2).save_model(folder / "m.txt")
    return folder / "m.txt"


def _write_missing(folder):
    return folder / "nothing.skops"


REFUSED = {
    _write_pickle: "skops.io.dump",
    _write_cut_off: "truncated",
    _write_bomb: "zip bomb",
    _write_unknown_type: "_CustomClassifier",
    _write_function: "numpy.testing.rundocs",
    _write_invalid_node_numbers: "points outside itself",
    _write_no_scores: "voting='soft'",
    _write_regressor: "tabular-regression",
    _write_unfitted: "never fitted",
    _write_cut_off_xgboost: "truncated",
    _write_cut_off_lightgbm: "truncated",
    _write_linear_trees: "linear_tree",
    _write_missing: "there is no file",
}


@pytest.mark.parametrize("write", REFUSED, ids=lambda write: write.__name__.removeprefix("_write_"))
def test_files_that_are_broken_or_unsafe_are_refused(tmp_path, write):
    with pytest.raises(ConversionError) as refusal:
        TabularClassification(ConversionRequest("t", str(write(tmp_path))))
    assert REFUSED[write] in str(refusal.value)
    assert not Path("/tmp/tidegate-table-was-here").exists()


def test_an_estimator_without_a_converter_is_named(tmp_path):
    from sklearn.gaussian_process import GaussianProcessClassifier

    path = save(
        GaussianProcessClassifier(), tmp_path / "m.skops", (WINE[0][:60], WINE[1][::3][:60])
    )
    with pytest.raises(ConversionError, match="GaussianProcessClassifier cannot be converted"):
        TabularClassification(ConversionRequest("t", str(path))).export(tmp_path / "m.onnx")


def test_a_model_of_another_version_is_reported(tmp_path):
    path = save(tree.DecisionTreeClassifier(), tmp_path / "m.skops")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    import sklearn

    current, other = f'"{sklearn.__version__}"'.encode(), b'"0.24.2"'
    names = [n for n, content in members.items() if current in content]
    assert names or _contains_version(members, sklearn.__version__)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, _with_version(content, sklearn.__version__, current, other))
    task = TabularClassification(ConversionRequest("t", str(path)))
    assert "0.24.2" in task.remarks[0]
    assert task.card()["remarks"] == task.remarks


def _contains_version(members, version) -> bool:
    return any(f'\\"{version}\\"'.encode() in content for content in members.values())


def _with_version(content: bytes, version: str, current: bytes, other: bytes) -> bytes:
    escaped = f'\\"{version}\\"'.encode()
    return content.replace(current, other).replace(escaped, b'\\"0.24.2\\"')


CSV = {
    "1,2,3\n4,5,6\n": "has no header",
    "age,income (k€),plan\n1,2,basic\n": "lacks the column 'country'",
    "age,income (k€),plan,country,x\n1,2,basic,DE,1\n": "column 'x', which the model does not take",
    "age,income (k€),plan,country\n1,2,basic,DE\n1,x,basic,DE\n": "line 3: 'income (k€)' is 'x'",
    "age,income (k€),plan,country\n1,2,basic\n": "line 2: 3 values",
    "age,income (k€),plan,country\n": "no row",
    "age,income (k€),plan,country\n1,inf,basic,DE\n": "does not accept there",
}


@pytest.fixture(scope="module")
def customer_file(tmp_path_factory):
    return save(customer_pipeline(), tmp_path_factory.mktemp("m") / "m.skops", customers())


@pytest.mark.parametrize("text", CSV, ids=lambda text: CSV[text].replace(" ", "-"))
def test_samples_that_do_not_fit_are_refused(tmp_path, customer_file, text):
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(SourceRefused) as refusal:
        TabularClassification(ConversionRequest("t", str(customer_file), tmp_path / "s.csv"))
    assert CSV[text] in str(refusal.value)


def test_the_users_samples_come_first_then_boundaries_between_them(tmp_path, customer_file):
    table, _ = customers()
    table.drop(columns="score").head(40).to_csv(tmp_path / "s.csv", index=False)
    task = TabularClassification(ConversionRequest("t", str(customer_file), tmp_path / "s.csv"))
    assert task.rows.labels[0] == "line 2 of s.csv"
    assert any("threshold of 'age'" in label for label in task.rows.labels)
    assert [check.line() for check in _graph_checks(task, tmp_path / "c") if not check.passed] == []


def test_a_column_named_like_an_output_gets_another_tensor_name(tmp_path):
    import pandas as pd

    rows = pd.DataFrame(WINE[0][:, :2], columns=["score", "label"])
    task = TabularClassification(
        ConversionRequest(
            "t", str(save(tree.DecisionTreeClassifier(), tmp_path / "m.skops", (rows, WINE[1])))
        )
    )
    assert [c["tensor"] for c in task.metadata()["columns"]] == ["score_column", "label_column"]
    assert [check.line() for check in _graph_checks(task, tmp_path / "c") if not check.passed] == []
