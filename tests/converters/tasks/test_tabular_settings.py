"""The prediction settings' tables name every parameter that the libraries have."""

import inspect
import warnings

import pytest
from sklearn.cluster import BisectingKMeans, KMeans, MiniBatchKMeans
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import IsolationForest
from sklearn.feature_extraction.text import (
    CountVectorizer,
    HashingVectorizer,
    TfidfTransformer,
    TfidfVectorizer,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.preprocessing import (
    Binarizer,
    FunctionTransformer,
    KBinsDiscretizer,
    MinMaxScaler,
    Normalizer,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    TargetEncoder,
)

from converters.sources import prediction_settings as settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightgbm
    import xgboost

XGBOOST = [
    getattr(xgboost, f"XGB{name}")
    for name in ("Classifier", "Regressor", "Ranker", "RFClassifier", "RFRegressor")
]
LIGHTGBM = [getattr(lightgbm, f"LGBM{name}") for name in ("Classifier", "Regressor", "Ranker")]
PARAMETERS = [
    *((estimator, settings.XGBOOST_PARAMETERS) for estimator in XGBOOST),
    *((estimator, settings.LIGHTGBM_PARAMETERS) for estimator in LIGHTGBM),
    *(
        (vectorizer, settings.VECTORIZER_PARAMETERS)
        for vectorizer in (CountVectorizer, TfidfVectorizer, HashingVectorizer)
    ),
    *((encoder, settings.ENCODER_PARAMETERS) for encoder in (OneHotEncoder, OrdinalEncoder)),
    (TargetEncoder, settings.ENCODER_PARAMETERS),
    (SimpleImputer, settings.IMPUTER_PARAMETERS),
    (Normalizer, settings.NORMALIZER_PARAMETERS),
    (TfidfTransformer, settings.TFIDF_PARAMETERS),
    (MinMaxScaler, settings.MIN_MAX_PARAMETERS),
    (KBinsDiscretizer, settings.BINS_PARAMETERS),
    (Binarizer, settings.BINARIZER_PARAMETERS),
    (PolynomialFeatures, settings.POLYNOMIAL_PARAMETERS),
    (IsolationForest, settings.ISOLATION_PARAMETERS),
    *((model, settings.CENTRES_PARAMETERS) for model in (KMeans, MiniBatchKMeans, BisectingKMeans)),
    (KNeighborsClassifier, settings.NEIGHBORS_PARAMETERS),
    (KNeighborsRegressor, settings.NEIGHBORS_PARAMETERS),
    (ColumnTransformer, settings.COLUMN_TRANSFORMER_PARAMETERS),
    (FunctionTransformer, settings.FUNCTION_PARAMETERS),
    (FixedThresholdClassifier, settings.THRESHOLD_PARAMETERS),
    (TunedThresholdClassifierCV, settings.THRESHOLD_PARAMETERS),
]
CALLS = [
    *(
        (getattr(estimator, name), settings.XGBOOST_CALL)
        for estimator in XGBOOST
        for name in ("predict", "predict_proba")
        if hasattr(estimator, name)
    ),
    (xgboost.Booster.predict, settings.XGBOOST_CALL),
    (xgboost.DMatrix.__init__, settings.XGBOOST_CALL),
    *(
        (getattr(estimator, name), settings.LIGHTGBM_CALL)
        for estimator in LIGHTGBM
        for name in ("predict", "predict_proba")
        if hasattr(estimator, name)
    ),
    (lightgbm.Booster.predict, settings.LIGHTGBM_CALL),
]
VERDICTS = {"applied", "asked", "refused", "recorded", "training"}
REQUIRED = {
    ColumnTransformer: [[]],
    FixedThresholdClassifier: [LogisticRegression()],
    TunedThresholdClassifierCV: [LogisticRegression()],
}


def _parameters(estimator):
    return set(estimator(*REQUIRED.get(estimator, ())).get_params(deep=False))


@pytest.mark.parametrize(
    ("estimator", "table"), PARAMETERS, ids=lambda value: getattr(value, "__name__", "")
)
def test_every_parameter_of_an_estimator_has_a_verdict(estimator, table):
    assert _parameters(estimator) <= set(table)
    assert set(table.values()) <= VERDICTS


@pytest.mark.parametrize(
    ("call", "table"), CALLS, ids=lambda value: getattr(value, "__qualname__", "")
)
def test_every_parameter_of_a_call_has_a_verdict(call, table):
    assert set(inspect.signature(call).parameters) - {"self"} <= set(table)


def test_no_table_names_a_parameter_that_is_gone():
    for table in {id(table): table for _, table in PARAMETERS}.values():
        parameters = {
            name
            for estimator, estimator_table in PARAMETERS
            if estimator_table is table
            for name in _parameters(estimator)
        }
        assert set(table) == parameters
    for table in (settings.XGBOOST_CALL, settings.LIGHTGBM_CALL):
        parameters = {
            name
            for call, call_table in CALLS
            if call_table is table
            for name in inspect.signature(call).parameters
        }
        assert set(table) == parameters - {"self"}


def test_what_is_asked_is_an_option_of_the_command():
    from converters.sources.xgboost_model import XgboostModel

    tables = (settings.XGBOOST_PARAMETERS, settings.XGBOOST_CALL)
    asked = {name for table in tables for name, verdict in table.items() if verdict == "asked"}
    assert asked == set(XgboostModel.options)
