"""Small models of tables, trained here, each saved in its library's own safe format."""

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
    """The estimator, fitted on this data, as a skops file."""
    skops.io.dump(estimator.fit(*data), path)
    return path


def customers() -> tuple[pd.DataFrame, np.ndarray]:
    """A table of numbers, texts and holes, and whether each row is a high or a low risk."""
    draw, rows = np.random.default_rng(1), 300
    table = pd.DataFrame(
        {
            "age": draw.integers(18, 80, rows).astype(float),
            "income (k€)": draw.gamma(3, 20, rows),
            "plan": draw.choice(["basic", "plus", "专业"], rows).astype(object),
            "country": draw.choice(["DE", "FR", "US"], rows).astype(object),
            "score": draw.normal(size=rows),
        }
    )
    table.loc[draw.random(rows) < 0.1, "age"] = np.nan
    table.loc[draw.random(rows) < 0.1, "country"] = np.nan
    risky = (table["age"].fillna(40) > 50) ^ (table["plan"] == "plus")
    return table, np.where(risky, "high", "low")


def customer_pipeline(model=None):
    """What scikit-learn's own guide builds for such a table. ``score`` is dropped."""
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
