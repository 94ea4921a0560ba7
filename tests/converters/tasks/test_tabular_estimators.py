"""Every estimator of scikit-learn either has a graph or is refused in one true line, with the cause
and the remedy. Never a traceback."""

import re
import warnings

import numpy as np
import pytest
import skops.io
from sklearn.utils import all_estimators

from converters.errors import ConversionError
from tests.tables_in_process import open_task
from tests.tiny_tabular_models import WINE

pytestmark = pytest.mark.filterwarnings("ignore")
ROWS, CLASSES = np.abs(WINE[0][::3, :4]), WINE[1][::3]
VALUES = ROWS @ np.array([1, 2, -1, 0.5])
TEXTS = ["good thing", "bad thing here", "so so", "quite good indeed"] * 15
GRAPH = "a graph"
# The expected result; for a refused estimator, a part of the message.
EXPECTED = {
    "ARDRegression": GRAPH,
    "AffinityPropagation": "use a classifier, a regressor, a KMeans",
    "AgglomerativeClustering": "no prediction for a new row",
    "BayesianGaussianMixture": GRAPH,
    "BernoulliNB": GRAPH,
    "BisectingKMeans": GRAPH,
    "CalibratedClassifierCV": GRAPH,
    "ComplementNB": GRAPH,
    "CountVectorizer": "prepares columns and predicts nothing",
    "DBSCAN": "no prediction for a new row",
    "DummyClassifier": "DummyClassifier has no converter; train with another",
    "EllipticEnvelope": "EllipticEnvelope has no converter; train with another",
    "ExtraTreeRegressor": GRAPH,
    "GaussianMixture": GRAPH,
    "GaussianNB": GRAPH,
    "HashingVectorizer": "prepares columns and predicts nothing",
    "HistGradientBoostingRegressor": GRAPH,
    "HuberRegressor": GRAPH,
    "IsolationForest": GRAPH,
    "IsotonicRegression": "takes a single number instead of columns",
    "KBinsDiscretizer": "prepares columns and predicts nothing",
    "KMeans": GRAPH,
    "KNeighborsClassifier": GRAPH,
    "KernelDensity": "use a classifier, a regressor, a KMeans",
    "KernelRidge": "KernelRidge has no converter; train with another",
    "LabelEncoder": "prepares columns and predicts nothing",
    "LabelPropagation": "LabelPropagation has no converter; train with another",
    "LinearSVC": GRAPH,
    "LocalOutlierFactor": "train it with novelty=True",
    "MLPClassifier": GRAPH,
    "MeanShift": "use a classifier, a regressor, a KMeans",
    "MiniBatchKMeans": GRAPH,
    "NMF": "prepares columns and predicts nothing",
    "NearestCentroid": "NearestCentroid has no converter; train with another",
    "OneClassSVM": GRAPH,
    "PCA": "prepares columns and predicts nothing",
    "PLSRegression": GRAPH,
    "QuadraticDiscriminantAnalysis": GRAPH,
    "RANSACRegressor": GRAPH,
    "RadiusNeighborsClassifier": "its graph fails on rows that the library predicts",
    "RadiusNeighborsRegressor": "its graph fails on rows that the library predicts",
    "RidgeClassifierCV": GRAPH,
    "SGDOneClassSVM": GRAPH,
    "SpectralClustering": "no prediction for a new row",
    "TfidfVectorizer": "prepares columns and predicts nothing",
    "TheilSenRegressor": GRAPH,
    "TweedieRegressor": GRAPH,
}
SETTINGS = {
    "RadiusNeighborsClassifier": {"radius": 20.0},
    "RadiusNeighborsRegressor": {"radius": 20.0},
    "CalibratedClassifierCV": {"cv": 2},
    "MLPClassifier": {"max_iter": 20},
    "HistGradientBoostingRegressor": {"max_iter": 5},
    "IsolationForest": {"n_estimators": 5},
    "TheilSenRegressor": {"max_subpopulation": 200},
}


def _fitted(name):
    estimator_class = dict(all_estimators())[name]
    if name.endswith("Vectorizer"):
        return estimator_class().fit(TEXTS)
    if name == "LabelEncoder":
        return estimator_class().fit(CLASSES)
    model = estimator_class(**SETTINGS.get(name, {}))
    if name == "IsotonicRegression":
        return model.fit(ROWS[:, 0], VALUES)
    regresses = getattr(model, "_estimator_type", "") == "regressor" or "Regress" in name
    return model.fit(ROWS, VALUES if regresses or name == "KernelRidge" else CLASSES)


@pytest.mark.parametrize("name", EXPECTED)
def test_an_estimator_has_a_graph_or_a_reason(tmp_path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        skops.io.dump(_fitted(name), tmp_path / "m.skops")
        try:
            open_task(tmp_path / "m.skops").export(tmp_path / "m.onnx")
            result = GRAPH
        except ConversionError as error:
            result = str(error)
    if EXPECTED[name] == GRAPH:
        assert result == GRAPH
        return
    assert EXPECTED[name] in result
    assert len(result) < 600
    assert not re.search(r"\n|Traceback|<class|shape calculator|never fitted", result)
