"""An XGBoost booster from its own file format (``save_model``): JSON or UBJSON."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx

from converters.errors import SourceRefused
from converters.sources.tabular_model import TabularModel
from converters.tables.graph import tree_graph
from converters.tables.table import Column, Table
from converters.tables.trees2onnx import Tree, thresholds_by_feature

# Objective -> the link from raw scores to an answer, and whether the base score is stored linked.
LINKS = {
    "binary:logistic": "sigmoid",
    "multi:softprob": "softmax",
    "multi:softmax": "softmax",
    "reg:squarederror": "identity",
    "reg:absoluteerror": "identity",
    "reg:pseudohubererror": "identity",
    "reg:quantileerror": "identity",
    "reg:squaredlogerror": "identity",
    "reg:logistic": "sigmoid one",
    "count:poisson": "exp",
    "reg:gamma": "exp",
    "reg:tweedie": "exp",
}


def _logit(chance: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(chance / (1 - chance)))


UNLINKED = {"sigmoid": _logit, "exp": np.log}


class XgboostModel(TabularModel):
    """XGBoost rounds its inputs to FP32 and sums in FP32: so the public inputs are FP32."""

    library: ClassVar[str] = "XGBoost"
    number: ClassVar[str] = "FP32"

    def __init__(self, path: Path) -> None:
        import xgboost

        self.path = path
        try:
            self.booster = xgboost.Booster(model_file=str(path))
            self.booster.set_param({"nthread": 1})
            learner = json.loads(self.booster.save_raw("json"))["learner"]
        except (xgboost.core.XGBoostError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise SourceRefused(
                f"{path} is no XGBoost model, or it is cut off ({reason}): save it again with "
                "save_model('model.json')"
            ) from error
        self._learner = learner
        self.objective = str(learner["objective"]["name"])
        if self.objective not in LINKS:
            raise SourceRefused(
                f"{path} was trained for {self.objective}, and what is served is a classifier or a "
                f"regressor: {', '.join(LINKS)}"
            )
        self.link = LINKS[self.objective]
        self.trees = tuple(_trees(path, learner))
        names = learner.get("feature_names") or self._numbered()
        self.columns = tuple(Column(str(name)) for name in names)
        self.labels = self._classes()

    def _numbered(self) -> list[str]:
        count = int(self._learner["learner_model_param"]["num_feature"])
        return [f"f{index}" for index in range(count)]

    def _classes(self) -> tuple[str, ...]:
        """XGBoost keeps no names of classes: they are the numbers that it was trained on."""
        count = {"sigmoid": 2, "softmax": self.width}.get(self.link, 0)
        return tuple(map(str, range(count)))

    @property
    def width(self) -> int:
        """How many raw scores a row has."""
        return max(1, int(self._learner["learner_model_param"]["num_class"]))

    def answer(self, table: Table) -> np.ndarray:
        raw = self.booster.predict(self._matrix(table), output_margin=self.link == "softmax")
        if self.link == "softmax":  # multi:softmax itself answers with the class alone
            powers = np.exp(raw.astype(np.float64) - raw.max(axis=1, keepdims=True))
            return np.asarray(powers / powers.sum(axis=1, keepdims=True))
        values = np.asarray(raw, dtype=np.float64).reshape(len(table), -1)
        if values.shape[1] > 1:
            raise SourceRefused(f"{self.path} predicts several values a row: train one for each")
        return np.hstack([1 - values, values]) if self.labels else values

    def decide(self, table: Table) -> np.ndarray:
        predicted = self.booster.predict(self._matrix(table))
        if self.objective == "multi:softmax":
            return predicted.astype(np.int64)
        return (predicted > 0.5).astype(np.int64) if predicted.ndim == 1 else predicted.argmax(1)

    def graph(self) -> onnx.ModelProto:
        return tree_graph(self.trees, self._start(), self.link, len(self.columns), narrow=True)

    def thresholds(self) -> Mapping[str, np.ndarray]:
        found = thresholds_by_feature(self.trees, len(self.columns))
        return {column.name: each for column, each in zip(self.columns, found, strict=True)}

    def _start(self) -> np.ndarray:
        """The base score as raw scores: the file has it as an answer (a probability, a count)."""
        written = self._learner["learner_model_param"]["base_score"]
        scores = np.array(json.loads(written if "[" in written else f"[{written}]"), dtype=float)
        unlink: Any = UNLINKED.get(self.link.removesuffix(" one"), np.asarray)
        return np.asarray(np.broadcast_to(unlink(scores), (self.width,)), dtype=np.float64)

    def _matrix(self, table: Table) -> Any:
        import xgboost

        rows = np.stack([table.columns[column.name] for column in self.columns], axis=1)
        return xgboost.DMatrix(rows, feature_names=self._learner.get("feature_names") or None)


def _trees(path: Path, learner: Mapping[str, Any]) -> Iterator[Tree]:
    booster = learner["gradient_booster"]
    weights = booster.get("weight_drop")
    booster = booster.get("gbtree", booster)  # dart wraps it
    if "trees" not in booster.get("model", {}):
        raise SourceRefused(
            f"{path} has no trees ({booster.get('name')}): train with gbtree or dart"
        )
    model = booster["model"]
    for index, (tree, target) in enumerate(zip(model["trees"], model["tree_info"], strict=True)):
        if any(tree["split_type"]):
            raise SourceRefused(
                f"{path} splits on categories itself (enable_categorical): one-hot encode them and "
                "train again"
            )
        if int(tree["tree_param"]["size_leaf_vector"]) > 1:
            raise SourceRefused(
                f"{path} has trees with several answers (multi_output_tree): train "
                "with multi_strategy='one_output_per_tree'"
            )
        yield _tree(tree, int(target), weights[index] if weights else 1.0)


def _tree(tree: Mapping[str, Any], target: int, weight: float) -> Tree:
    # The file writes FP32 numbers in their shortest form.
    conditions = np.array(tree["split_conditions"], dtype=np.float32).astype(np.float64)
    return Tree(
        feature=np.array(tree["split_indices"]),
        threshold=conditions,
        yes=np.array(tree["left_children"]),
        no=np.array(tree["right_children"]),
        missing=np.array(tree["default_left"], dtype=bool),
        value=conditions[:, None] * weight,
        mode=["BRANCH_LT"] * len(conditions),
        target=target,
    )
