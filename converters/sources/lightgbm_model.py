"""A LightGBM booster from its own text format (``booster_.save_model('model.txt')``)."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx

from converters.errors import SourceRefused
from converters.export.category_graph import (
    NO,
    YES,
    CategorySplits,
    category_frame,
    coded,
    with_coded_inputs,
)
from converters.export.tabular_graph import tree_graph
from converters.export.trees2onnx import Tree, thresholds_by_feature
from converters.sources.tabular_model import Forest, TabularModel
from converters.table import Column, Table

ZERO = float(np.float32(1e-35))  # its kZeroThreshold
LINKS = {
    "binary": "sigmoid",
    "multiclass": "softmax",
    "multiclassova": "sigmoid each",
    "regression": "identity",
    "regression_l1": "identity",
    "huber": "identity",
    "fair": "identity",
    "quantile": "identity",
    "mape": "identity",
    "poisson": "exp",
    "gamma": "exp",
    "tweedie": "exp",
    "cross_entropy": "sigmoid one",
    "lambdarank": "identity",
    "rank_xendcg": "identity",
}


class LightgbmModel(TabularModel):
    library: ClassVar[str] = "LightGBM"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.booster = _open(path)
        self._dump: Mapping[str, Any] = self.booster.dump_model()
        self._numbers = _written_numbers(path)
        objective, *settings = str(self._dump.get("objective", "")).split() or [""]
        if objective not in LINKS or "sqrt" in settings:
            raise SourceRefused(
                f"{path} was trained for "
                f"{' '.join([objective, *settings]) or 'no declared objective'}, and only a "
                f"classifier or a regressor can be served: {', '.join(LINKS)}"
            )
        self.link = LINKS[objective]
        # ``binary sigmoid:1``: the slope of the link.
        slopes = [entry.partition(":")[2] for entry in settings if entry.startswith("sigmoid:")]
        self.slope = float(slopes[0]) if slopes else 1.0
        names = [str(name) for name in self._dump["feature_names"]]
        # A category outside a split's set goes to the right, and so does a missing one.
        self.categories = CategorySplits(len(names), inside=YES, missing=NO, floors=False)
        self.trees = tuple(self._trees())
        self.codes = self._pandas_categories(names)
        self.columns = tuple(self._column(index, name) for index, name in enumerate(names))
        if self.codes:
            self.order = tuple(names)
        classes = int(self._dump["num_class"])
        label_counts = {"sigmoid": 2, "softmax": classes, "sigmoid each": classes}
        label_count = label_counts.get(self.link, 0)
        self.labels = tuple(map(str, range(label_count)))

    def scores(self, table: Table) -> np.ndarray:
        predicted = np.asarray(
            self.booster.predict(self._library_rows(table), num_threads=1), dtype=np.float64
        )
        predicted = predicted.reshape(len(table), -1)
        columns = [1 - predicted, predicted] if self.link == "sigmoid" else [predicted]
        scores: np.ndarray = np.hstack(columns)
        return scores

    def decide(self, table: Table) -> np.ndarray:
        positions: np.ndarray = self.scores(table).argmax(axis=1)
        return positions

    def graph(self) -> onnx.ModelProto:
        graph = tree_graph(
            self.trees,
            self.start(),
            self.link,
            len(self.columns),
            narrow=False,
            categories=self.categories,
        )
        return with_coded_inputs(graph, self.columns, self.codes) if self.order else graph

    def start(self) -> np.ndarray:
        """What the trees are added to, FP64 [raw scores]: zeros, because the trees include it."""
        return np.zeros(int(self._dump["num_tree_per_iteration"]))

    def thresholds(self) -> Mapping[str, np.ndarray]:
        thresholds = thresholds_by_feature(self.trees, len(self.columns))
        names = (column.name for column in self.columns)
        return dict(zip(names, thresholds, strict=True))

    def forest(self, table: Table) -> Forest:
        numbers = self.categories.numbers(coded(table, self.columns, self.codes))
        return Forest(self.trees, numbers, direct=not self.categories)

    def _column(self, index: int, name: str) -> Column:
        if index not in self.codes:
            categories = self._dump["feature_infos"].get(name, {}).get("values", ())
            return Column(
                name, values=tuple(sorted(float(value) for value in categories if value >= 0))
            )
        categories = self.codes[index]
        if all(isinstance(category, str) for category in categories):
            return Column(name, is_text=True, categories=tuple(map(str, categories)))
        return Column(name, values=tuple(map(float, categories)))

    def _pandas_categories(self, names: Sequence[str]) -> dict[int, list[Any]]:
        """The categories of each column of pandas' type ``category``, by the column's index: the
        file lists them in the order of those columns, and does not say which columns these are."""
        category_lists = self._dump.get("pandas_categorical") or []
        infos = self._dump["feature_infos"]
        indices = [index for index, name in enumerate(names) if infos.get(name, {}).get("values")]
        if category_lists and len(category_lists) != len(indices):
            raise SourceRefused(
                f"{self.path} was trained on {len(category_lists)} columns of pandas' type "
                f"category, and {len(indices)} are known as such (ordered or constant ones are "
                "not): convert the others to numbers, and train again"
            )
        for categories in category_lists:
            are_texts = {isinstance(category, str) for category in categories}
            if len(are_texts) > 1 or any(isinstance(category, bool) for category in categories):
                raise SourceRefused(
                    f"{self.path} has a column whose categories are of several types, or booleans: "
                    "convert them to text, and train again"
                )
        return dict(zip(indices, category_lists, strict=True)) if category_lists else {}

    def _library_rows(self, table: Table) -> Any:
        """The rows as a user passes them: a DataFrame if columns are of the type ``category``."""
        if not self.codes:
            return np.stack([table.columns[column.name] for column in self.columns], axis=1)
        return category_frame(table, self.columns, self.codes)

    def _trees(self) -> Iterator[Tree]:
        targets, trees = int(self._dump["num_tree_per_iteration"]), self._dump["tree_info"]
        # A random forest predicts the mean; in a sum of K targets each target has its own trees.
        weight = targets / len(trees) if self._dump.get("average_output") else 1.0
        for index, tree in enumerate(trees):
            builder = _TreeBuilder(self.path, *self._numbers[index], self.categories)
            builder.add(tree["tree_structure"])
            yield builder.tree(index % targets, weight * self.slope)


def _effective_threshold(threshold: float) -> float:
    """The threshold as LightGBM applies it: it reads every number up to ``ZERO`` as 0 before it
    compares."""
    if -ZERO <= threshold < 0:
        return float(np.nextafter(-ZERO, -np.inf))
    return ZERO if 0 <= threshold < ZERO else threshold


@dataclass
class _TreeBuilder:
    """Turns a tree of dictionaries into one of arrays."""

    path: Path
    thresholds: Sequence[float]
    leaves: Sequence[float]
    categories: CategorySplits
    rows: list[list[Any]] = field(default_factory=list)

    def add(self, node: Mapping[str, Any]) -> int:
        """Add this node and its children after it; return its index."""
        index = len(self.rows)
        self.rows.append([0, 0.0, -1, -1, False, 0.0])
        if "split_feature" not in node:
            if "leaf_coeff" in node:
                raise SourceRefused(
                    f"{self.path} has linear models in its leaves (linear_tree), and ONNX's trees "
                    "hold one number in each, so the graph would not match LightGBM: train it "
                    "without linear_tree"
                )
            self.rows[index][5] = self.leaves[int(node.get("leaf_index", 0))]
            return index
        self._check(node)
        if node["decision_type"] == "==":
            codes = [int(code) for code in str(node["threshold"]).split("||")]
            self.rows[index][0] = self.categories.feature(int(node["split_feature"]), codes)
            self.rows[index][2] = self.add(node["left_child"])
            self.rows[index][3] = self.add(node["right_child"])
            return index
        threshold = _effective_threshold(self.thresholds[int(node["split_index"])])
        # If training met no missing values, LightGBM reads NaN as 0.
        is_nan = node["missing_type"] == "NaN"
        missing = bool(node["default_left"]) if is_nan else threshold >= 0
        self.rows[index][:2] = [int(node["split_feature"]), threshold]
        self.rows[index][2] = self.add(node["left_child"])
        self.rows[index][3] = self.add(node["right_child"])
        self.rows[index][4] = missing
        return index

    def _check(self, node: Mapping[str, Any]) -> None:
        if node["decision_type"] not in ("<=", "=="):
            raise SourceRefused(
                f"{self.path} decides by {node['decision_type']!r}, which is not supported: save "
                "it again with this environment's version of LightGBM"
            )
        if node["missing_type"] == "Zero":
            raise SourceRefused(f"{self.path} was trained with zero_as_missing: train it without")

    def tree(self, target: int, weight: float) -> Tree:
        feature, threshold, yes, no, missing, value = zip(*self.rows, strict=True)
        return Tree(
            feature=np.array(feature),
            threshold=np.array(threshold),
            yes=np.array(yes),
            no=np.array(no),
            missing=np.array(missing),
            value=np.array(value)[:, None] * weight,
            mode=["BRANCH_LEQ"] * len(self.rows),
            target=target,
        )


def _written_numbers(path: Path) -> list[tuple[list[float], list[float]]]:
    """Each tree's thresholds and leaves as the file has them: dump_model loses numbers beyond
    1e300."""
    trees: list[tuple[list[float], list[float]]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition("=")
        if key == "Tree":
            trees.append(([], []))
        elif trees and key in ("threshold", "leaf_value"):
            trees[-1][key == "leaf_value"].extend(map(float, value.split()))
        elif line == "end of trees":
            break
    return trees


def _require_whole(text: str) -> None:
    """Raise ValueError for a truncated file, of which LightGBM's own parser silently reads as much
    as there is.

    What follows the parameters is written by the Python package alone: without it the categories of
    pandas are lost, and each would be sent as its code.
    """
    if not text.startswith("tree\n") or "\nend of trees\n" not in text:
        raise ValueError("it has no 'tree' at its beginning or no 'end of trees'")
    end = text.partition("\nend of parameters\n")
    if not end[1]:
        raise ValueError("it has no 'end of parameters'")
    categories = [line for line in end[2].splitlines() if line.startswith("pandas_categorical:")]
    if categories:
        if not text.endswith("\n"):
            raise ValueError("its last line has no end")
        json.loads(categories[-1].partition(":")[2])
        return
    infos = next((line for line in text.splitlines() if line.startswith("feature_infos=")), "")
    # A column of numbers is [low:high]; one of categories lists them.
    if any(info[0] != "[" and info != "none" for info in infos.partition("=")[2].split()):
        raise ValueError(
            "it has columns of categories, and no line 'pandas_categorical' that names them"
        )


def _open(path: Path) -> Any:
    import lightgbm

    try:
        text = path.read_text(encoding="utf-8")
        _require_whole(text)
        return lightgbm.Booster(model_str=text)
    except (ValueError, lightgbm.basic.LightGBMError) as error:
        raise SourceRefused(
            f"{path} is not a LightGBM model, or it is truncated ({error}): save it again with "
            "booster_.save_model('model.txt')"
        ) from error
