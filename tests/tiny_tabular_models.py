"""Small tabular models, trained here, each saved in its library's own safe format."""

from pathlib import Path

import numpy as np
import pandas as pd
import skops.io
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

CANCER = load_breast_cancer(return_X_y=True)
WINE = load_wine(return_X_y=True)
DIABETES = load_diabetes(return_X_y=True)


def save(estimator, path: Path, data=WINE) -> Path:
    """The estimator, fitted to this data and saved as a skops file."""
    skops.io.dump(estimator.fit(*data), path)
    return path


def customers() -> tuple[pd.DataFrame, np.ndarray]:
    """A table of numbers, texts and missing values, and whether each row is a high or a low
    risk."""
    rng, count = np.random.default_rng(1), 300
    table = pd.DataFrame(
        {
            "age": rng.integers(18, 80, count).astype(float),
            "income (k€)": rng.gamma(3, 20, count),
            "plan": rng.choice(["basic", "plus", "专业"], count).astype(object),
            "country": rng.choice(["DE", "FR", "US"], count).astype(object),
            "score": rng.normal(size=count),
        }
    )
    table.loc[rng.random(count) < 0.1, "age"] = np.nan
    table.loc[rng.random(count) < 0.1, "country"] = np.nan
    risky = (table["age"].fillna(40) > 50) ^ (table["plan"] == "plus")
    return table, np.where(risky, "high", "low")


def customer_pipeline(model=None):
    """The pipeline that scikit-learn's own guide builds for such a table. ``score`` is dropped."""
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    texts = make_pipeline(
        SimpleImputer(strategy="constant", fill_value="none"),
        OneHotEncoder(handle_unknown="ignore", sparse_output=False),
    )
    columns = ColumnTransformer(
        [
            ("numbers", numbers, ["age", "income (k€)"]),
            ("country", texts, ["country"]),
            ("plan", OneHotEncoder(sparse_output=False), ["plan"]),
        ]
    )
    return make_pipeline(columns, model or RandomForestClassifier(8, max_depth=6, random_state=0))
