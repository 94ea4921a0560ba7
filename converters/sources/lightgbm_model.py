"""A LightGBM booster from its own text format (``booster_.save_model('model.txt')``)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx

from converters.errors import SourceRefused
from converters.sources.tabular_model import Forest, TabularModel
from converters.tabular.category_graph import (
    NO,
    YES,
    CategorySplits,
    category_frame,
    coded,
    with_coded_inputs,
)
from converters.tabular.graph import tree_graph
from converters.tabular.table import Column, Table
from converters.tabular.trees2onnx import Tree, thresholds_by_feature

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
                f"{path} was trained for {' '.join([objective, *settings]) or 'nothing it says'}, "
                f"and what is served is a classifier or a regressor: {', '.join(LINKS)}"
            )
        self.link = LINKS[objective]
        # ``binary sigmoid:1``: the slope of the link.
        slopes = [each.partition(":")[2] for each in settings if each.startswith("sigmoid:")]
        self.slope = float(slopes[0]) if slopes else 1.0
        names = [str(name) for name in self._dump["feature_names"]]
        # A category that is not in a split's set goes to the right, and so does a missing one.
        self.categories = CategorySplits(len(names), inside=YES, missing=NO, floors=False)
        self.trees = tuple(self._trees())
        self.codes = self._pandas_categories(names)
        self.columns = tuple(self._column(place, name) for place, name in enumerate(names))
        if self.codes:
            self.order = tuple(names)
        classes = int(self._dump["num_class"])
        counts = {"sigmoid": 2, "softmax": classes, "sigmoid each": classes}
        count = counts.get(self.link, 0)
        self.labels = tuple(map(str, range(count)))

    def answer(self, table: Table) -> np.ndarray:
        values = np.asarray(
            self.booster.predict(self._asked(table), num_threads=1), dtype=np.float64
        )
        values = values.reshape(len(table), -1)
        both = [1 - values, values] if self.link == "sigmoid" else [values]
        answer: np.ndarray = np.hstack(both)
        return answer

    def decide(self, table: Table) -> np.ndarray:
        positions: np.ndarray = self.answer(table).argmax(axis=1)
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
        """What the trees are added to, FP64 [raw scores]: nothing, it is in them."""
        return np.zeros(int(self._dump["num_tree_per_iteration"]))

    def thresholds(self) -> Mapping[str, np.ndarray]:
        found = thresholds_by_feature(self.trees, len(self.columns))
        return {column.name: each for column, each in zip(self.columns, found, strict=True)}

    def forest(self, table: Table) -> Forest:
        numbers = self.categories.numbers(coded(table, self.columns, self.codes))
        return Forest(self.trees, numbers, direct=not self.categories)

    def _column(self, place: int, name: str) -> Column:
        if place not in self.codes:
            known = self._dump["feature_infos"].get(name, {}).get("values", ())
            return Column(name, values=tuple(sorted(float(each) for each in known if each >= 0)))
        known = self.codes[place]
        if all(isinstance(each, str) for each in known):
            return Column(name, is_text=True, categories=tuple(map(str, known)))
        return Column(name, values=tuple(map(float, known)))

    def _pandas_categories(self, names: Sequence[str]) -> dict[int, list[Any]]:
        """The categories of each column of pandas' type ``category``, by its place: the file has
        them in the order of those columns, and does not say which they are."""
        held = self._dump.get("pandas_categorical") or []
        infos = self._dump["feature_infos"]
        found = [place for place, name in enumerate(names) if infos.get(name, {}).get("values")]
        if held and len(held) != len(found):
            raise SourceRefused(
                f"{self.path} was trained on {len(held)} columns of pandas' type category, and "
                f"{len(found)} are known as such (ordered or constant ones are not): make the "
                "others numbers, and train again"
            )
        for known in held:
            kinds = {isinstance(each, str) for each in known}
            if len(kinds) > 1 or any(isinstance(each, bool) for each in known):
                raise SourceRefused(
                    f"{self.path} has a column with categories of several types, or true and "
                    "false: make them texts, and train again"
                )
        return dict(zip(found, held, strict=True)) if held else {}

    def _asked(self, table: Table) -> Any:
        """What its user gives it: a DataFrame where columns are of the type category."""
        if not self.codes:
            return np.stack([table.columns[column.name] for column in self.columns], axis=1)
        return category_frame(table, self.columns, self.codes)

    def _trees(self) -> Iterator[Tree]:
        targets, trees = int(self._dump["num_tree_per_iteration"]), self._dump["tree_info"]
        # A random forest's answer is the mean; in a sum of K targets each has its own trees.
        weight = targets / len(trees) if self._dump.get("average_output") else 1.0
        for index, tree in enumerate(trees):
            growing = _Growing(self.path, *self._numbers[index], self.categories)
            growing.add(tree["tree_structure"])
            yield growing.tree(index % targets, weight * self.slope)


def _beside_zero(threshold: float) -> float:
    """LightGBM reads every number of at most ``ZERO`` as 0 before it compares."""
    if -ZERO <= threshold < 0:
        return float(np.nextafter(-ZERO, -np.inf))
    return ZERO if 0 <= threshold < ZERO else threshold


@dataclass
class _Growing:
    """A tree of dictionaries as it becomes one of arrays."""

    path: Path
    thresholds: Sequence[float]
    leaves: Sequence[float]
    categories: CategorySplits
    rows: list[list[Any]] = field(default_factory=list)

    def add(self, node: Mapping[str, Any]) -> int:
        """The place of this node, its children added after it."""
        place = len(self.rows)
        self.rows.append([0, 0.0, -1, -1, False, 0.0])
        if "split_feature" not in node:
            if "leaf_coeff" in node:
                raise SourceRefused(
                    f"{self.path} has lines in its leaves (linear_tree): ONNX's trees have one "
                    "number in each, and a graph of lines would not be LightGBM's: train without "
                    "linear_tree"
                )
            self.rows[place][5] = self.leaves[int(node.get("leaf_index", 0))]
            return place
        self._check(node)
        if node["decision_type"] == "==":
            codes = [int(each) for each in str(node["threshold"]).split("||")]
            self.rows[place][0] = self.categories.feature(int(node["split_feature"]), codes)
            self.rows[place][2] = self.add(node["left_child"])
            self.rows[place][3] = self.add(node["right_child"])
            return place
        threshold = _beside_zero(self.thresholds[int(node["split_index"])])
        # Without missing values in training LightGBM reads NaN as 0.
        is_nan = node["missing_type"] == "NaN"
        missing = bool(node["default_left"]) if is_nan else threshold >= 0
        self.rows[place][:2] = [int(node["split_feature"]), threshold]
        self.rows[place][2] = self.add(node["left_child"])
        self.rows[place][3] = self.add(node["right_child"])
        self.rows[place][4] = missing
        return place

    def _check(self, node: Mapping[str, Any]) -> None:
        if node["decision_type"] not in ("<=", "=="):
            raise SourceRefused(
                f"{self.path} decides by {node['decision_type']!r}, which is not known here: save "
                "it again with the version of this environment"
            )
        if node["missing_type"] == "Zero":
            raise SourceRefused(f"{self.path} was trained with zero_as_missing: train without it")

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
    """Each tree's thresholds and leaves as the file has them: the dump cuts off beyond 1e300."""
    found: list[tuple[list[float], list[float]]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition("=")
        if key == "Tree":
            found.append(([], []))
        elif found and key in ("threshold", "leaf_value"):
            found[-1][key == "leaf_value"].extend(map(float, value.split()))
        elif line == "end of trees":
            break
    return found


def _open(path: Path) -> Any:
    import lightgbm

    try:
        text = path.read_text(encoding="utf-8")
        # Its own parser reads a file that is cut off as far as it goes, without a word.
        if not text.startswith("tree\n") or "\nend of trees\n" not in text:
            raise ValueError("it does not begin with 'tree' and end its trees")
        return lightgbm.Booster(model_str=text)
    except (ValueError, lightgbm.basic.LightGBMError) as error:
        raise SourceRefused(
            f"{path} is no LightGBM model, or it is cut off ({error}): save it again with "
            "booster_.save_model('model.txt')"
        ) from error
