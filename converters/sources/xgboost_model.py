"""An XGBoost booster from its own file format (``save_model``): JSON or UBJSON."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx

from converters.errors import SourceRefused
from converters.export.category_graph import (
    NO,
    CategorySplits,
    category_frame,
    coded,
    with_coded_inputs,
)
from converters.export.tabular_graph import linear_graph, tree_graph
from converters.export.trees2onnx import Tree, thresholds_by_feature
from converters.sources.tabular_model import NO_OPTIONS, Forest, TabularModel
from converters.table import Column, Table

# Objective -> the link from raw scores to a prediction.
LINKS = {
    "binary:logistic": "sigmoid",
    "binary:hinge": "hinge",
    "multi:softprob": "softmax",
    "multi:softmax": "softmax",
    "reg:squarederror": "identity",
    "reg:absoluteerror": "identity",
    "reg:pseudohubererror": "identity",
    "reg:quantileerror": "identity",
    "reg:squaredlogerror": "identity",
    "reg:logistic": "sigmoid one",
    "binary:logitraw": "identity",
    "count:poisson": "exp",
    "reg:gamma": "exp",
    "reg:tweedie": "exp",
    "survival:cox": "exp",
    "survival:aft": "exp",
    "rank:pairwise": "identity",
    "rank:ndcg": "identity",
    "rank:map": "identity",
}
# The inverse of the form in which the base score is stored, where that is not a raw score.
UNLINKED: Mapping[str, Any] = {"sigmoid": lambda p: np.log(p / (1 - p)), "exp": np.log}
CLASS_LINKS = ("sigmoid", "hinge", "softmax")
WRAPPERS = {
    "classifier": "XGBClassifier",
    "regressor": "XGBRegressor",
    "ranker": "XGBRanker",
}
RANGE = re.compile(r"(\d+):(\d+)")
ALL_ROUNDS = (0, 0)


class XgboostModel(TabularModel):
    """The original is what the user calls: ``XGBClassifier`` (Regressor, Ranker) with
    ``load_model`` if the file says that one of them wrote it, else ``Booster.predict``.

    XGBoost rounds its inputs to FP32 and sums in FP32, so the public inputs are FP32.

    Options that a file does not hold: ``missing``, the number that means a missing value (XGBoost's
    own default: NaN), and ``iteration_range``: ``all``, ``best`` or ``BEGIN:END``.
    """

    library: ClassVar[str] = "XGBoost"
    number: ClassVar[str] = "FP32"
    options: ClassVar[tuple[str, ...]] = ("missing", "iteration_range")

    def __init__(self, path: Path, options: Mapping[str, str] = NO_OPTIONS) -> None:
        import xgboost

        self.path = path
        try:
            self.booster = xgboost.Booster(model_file=str(path))
            self.booster.set_param({"nthread": 1})
            learner = json.loads(self.booster.save_raw("json"))["learner"]
        except (xgboost.core.XGBoostError, ValueError, KeyError) as error:
            reason = _short_reason(error)
            _require_no_other_library(path)
            raise SourceRefused(
                f"{path} is not an XGBoost model, or it is truncated ({reason}): save it again "
                "with save_model('model.json')"
            ) from error
        self._learner = learner
        self._attributes: Mapping[str, Any] = self.booster.attributes()
        self.objective = str(learner["objective"]["name"])
        if self.objective not in LINKS:
            raise SourceRefused(
                f"{path} was trained for {self.objective}, which has no converter; supported are "
                f"{', '.join(LINKS)}"
            )
        targets = int(learner["learner_model_param"].get("num_target", 1))
        if targets > 1:
            raise SourceRefused(
                f"{path} predicts {targets} values per row: train one model for each"
            )
        self.wrapper = self._wrapper()
        self.link = self._link()
        self.missing = _missing(options.get("missing", "nan"))
        requested = options.get("iteration_range", "")
        self.iterations = self._iterations(requested)
        # None: the estimator predicts with the range in its own attribute.
        all_rounds = (0, self.booster.num_boosted_rounds())
        self._estimator_range: tuple[int, int] | None = None
        if requested:
            self._estimator_range = all_rounds if self.iterations == ALL_ROUNDS else self.iterations
        names = [str(name) for name in learner.get("feature_names") or self._default_names()]
        # A category outside a split's set goes to the left, a missing one follows the split's
        # default.
        self.categories = CategorySplits(len(names), inside=NO, missing=np.nan, floors=True)
        self.codes = self._categories_of(names)
        self.columns = tuple(self._column(index, name) for index, name in enumerate(names))
        if self.codes:
            self.order = tuple(names)
        self.linear = _linear(learner, len(self.columns), self.width)
        self.trees = () if self.linear is not None else tuple(self._used_trees())
        self.steps = self.linear is None
        self.labels = self._classes()
        if "missing" not in options:
            self._require_no_missing()
        self.remarks = tuple(self._remarks(options))
        self._estimator: Any = self._load_estimator() if self.wrapper else None

    def _wrapper(self) -> str:
        """``classifier``, ``regressor`` or ``ranker``, whichever wrote the file; "" for a
        Booster."""
        attributes = json.loads(self._attributes.get("scikit_learn", "{}"))
        estimator_type = str(attributes.get("_estimator_type") or "")
        if attributes and estimator_type not in WRAPPERS:
            raise SourceRefused(
                f"{self.path} was written by an estimator of type {estimator_type or 'unknown'!r}, "
                f"and only {', '.join(WRAPPERS.values())} are supported: save its booster with "
                "get_booster().save_model('model.json')"
            )
        if estimator_type == "classifier" and self.objective == "binary:logitraw":
            raise SourceRefused(
                f"{self.path}: XGBoost has no predict_proba for binary:logitraw; train it with "
                "binary:logistic, or save get_booster(), whose margins are served as a value"
            )
        return estimator_type

    def _link(self) -> str:
        link = LINKS[self.objective]
        if self.wrapper in ("regressor", "ranker") and link in ("sigmoid", "hinge"):
            return f"{link} one"
        if self.wrapper == "classifier" and link == "sigmoid one":
            return "sigmoid"
        if (self.wrapper == "classifier") != (link in CLASS_LINKS) and self.wrapper:
            raise SourceRefused(
                f"{self.path} is an XGB{self.wrapper.capitalize()} trained for {self.objective}: "
                "that estimator type cannot predict for this objective; train it for another"
            )
        return link

    def _iterations(self, requested: str) -> tuple[int, int]:
        """The rounds of trees that predict, as ``iteration_range`` has them; (0, 0) means all."""
        best = self._attributes.get("best_iteration")
        if requested == "all":
            return ALL_ROUNDS
        if requested == "best":
            if best is None:
                raise SourceRefused(
                    f"{self.path} has no best_iteration: it was trained without early stopping; "
                    "omit --iteration-range"
                )
            return 0, int(best) + 1
        if requested:
            match = RANGE.fullmatch(requested)
            rounds = self.booster.num_boosted_rounds()
            if not match or not int(match[1]) < int(match[2]) <= rounds:
                raise SourceRefused(
                    f"--iteration-range {requested}: use all, best or BEGIN:END within 0:{rounds}"
                )
            return int(match[1]), int(match[2])
        if best is None and "best_ntree_limit" in self._attributes:
            raise SourceRefused(
                f"{self.path} was written by an old XGBoost that saved best_ntree_limit "
                f"({self._attributes['best_ntree_limit']}), which today's does not read: choose "
                "the trees with --iteration-range all or 0:END"
            )
        return (0, int(best) + 1) if best is not None and self.wrapper else ALL_ROUNDS

    def _require_no_missing(self) -> None:
        """Raise SourceRefused if training taught the trees where missing numbers go: no file says
        which number meant a missing one, and with another one every row that has it is predicted
        wrongly.

        If training met none, XGBoost gives each split the same default (``hist`` and ``approx``: to
        the right, ``exact``: to the left), and there is nothing to ask.
        """
        feature_count = len(self.columns)
        defaults = {
            bool(is_left)
            for tree in self.trees
            for is_left in tree.missing[~tree.leaves & (tree.feature < feature_count)]
        }
        if len(defaults) > 1:
            raise SourceRefused(
                f"{self.path} was trained with missing numbers, and the file does not say which "
                "value means missing: add --missing nan if they were NaN or empty (XGBoost's own "
                "default), --missing VALUE if it was trained with missing=VALUE, --missing 0 if on "
                "a sparse matrix"
            )

    def _load_estimator(self) -> Any:
        """The estimator as its user loads it."""
        import xgboost

        options = {"enable_categorical": True} if self.types else {}
        estimator_class = getattr(xgboost, WRAPPERS[self.wrapper])
        estimator = estimator_class(missing=self.missing, n_jobs=1, **options)
        estimator.load_model(str(self.path))
        return estimator

    def _remarks(self, options: Mapping[str, str]) -> Iterator[str]:
        call = f"{WRAPPERS[self.wrapper]}.load_model" if self.wrapper else "Booster.predict"
        rounds, (begin, end) = self.booster.num_boosted_rounds(), self.iterations
        range_text = f"rounds {begin} to {end - 1} of {rounds}" if end else f"all {rounds} rounds"
        best = self._attributes.get("best_iteration")
        if best is not None and not self.wrapper and "iteration_range" not in options:
            range_text += (
                f", as Booster.predict does; training stopped early at round {best}: if you call "
                "it with that round, or load it into an XGBClassifier, add --iteration-range best"
            )
        yield f"the original is {call}, with {range_text}"
        if "missing" in options:
            yield f"a missing number is {options['missing']} (--missing), or NaN"
        elif self.linear is not None:
            yield (
                "a missing number is NaN, XGBoost's own default, and contributes nothing; weights "
                "do not show whether another number meant missing in training (missing=VALUE): if "
                "so, give --missing VALUE"
            )
        else:
            yield (
                "a missing number is NaN, XGBoost's own default: no split learned a direction for "
                "missing numbers, so training met none. If another number means missing "
                "(missing=VALUE, or a sparse matrix: 0), give --missing VALUE"
            )

    def _categories_of(self, names: Sequence[str]) -> dict[int, list[Any]]:
        """The categories of each column of pandas' type ``category`` that the file names (since
        XGBoost 3.1), by the column's index."""
        booster = self._learner["gradient_booster"]
        model = booster.get("gbtree", booster).get("model", {})
        categories: dict[int, list[Any]] = {}
        for index, encoding in enumerate(model.get("cats", {}).get("enc", ())):
            values, offsets = encoding.get("values", ()), encoding.get("offsets")
            if not len(values):
                continue
            if offsets is None:
                categories[index] = list(values)
                continue
            if min(values) < 0 or max(values) > 127:
                # XGBoost writes UTF-8 but counts characters, and so cuts off the end: the names are
                # lost.
                raise SourceRefused(
                    f"{self.path}: XGBoost stores the categories of {names[index]!r} wrongly, "
                    "because they have letters beyond ASCII: rename them, and train again"
                )
            text = bytes(values).decode()
            categories[index] = [text[start:end] for start, end in pairwise(offsets)]
        return categories

    def _column(self, index: int, name: str) -> Column:
        categories = self.codes.get(index)
        if categories is None:
            return Column(name)
        if isinstance(categories[0], str):
            return Column(name, is_text=True, categories=tuple(categories), open=False)
        return Column(name, values=tuple(map(float, categories)), open=False)

    @property
    def types(self) -> list[str]:
        """The columns' types if one of them holds categories, else []."""
        types = list(self._learner.get("feature_types") or ())
        return types if "c" in types else []

    def _default_names(self) -> list[str]:
        count = int(self._learner["learner_model_param"]["num_feature"])
        return [f"f{index}" for index in range(count)]

    def _classes(self) -> tuple[str, ...]:
        """The class labels. XGBoost stores no class names: they are the numbers that it was trained
        on."""
        count = {"sigmoid": 2, "hinge": 2, "softmax": self.width}.get(self.link, 0)
        return tuple(map(str, range(count)))

    @property
    def width(self) -> int:
        """The number of raw scores per row."""
        parameters = self._learner["learner_model_param"]
        return max(1, int(parameters["num_class"]), int(parameters.get("num_target", 1)))

    def scores(self, table: Table) -> np.ndarray:
        if self._estimator is not None:
            values = self._estimate(table)
        elif self.link == "softmax":  # multi:softmax itself predicts only the class
            raw = self._predicted(table, margin=True).astype(np.float64)
            exponentials = np.exp(raw - raw.max(axis=1, keepdims=True))
            values = exponentials / exponentials.sum(axis=1, keepdims=True)
        else:
            values = self._predicted(table)
            values = np.stack([1 - values, values], axis=1) if self.labels else values
        scores = np.asarray(values, dtype=np.float64).reshape(len(table), -1)
        if scores.shape[1] != max(1, len(self.labels)):
            raise SourceRefused(
                f"{self.path} predicts {scores.shape[1]} values per row: train one model for each"
            )
        return scores

    def _estimate(self, table: Table) -> Any:
        rows = self._rows(table)
        predict = self._estimator.predict_proba if self.labels else self._estimator.predict
        return predict(rows, iteration_range=self._estimator_range)

    def _predicted(
        self, table: Table, *, margin: bool = False, start: float | None = None
    ) -> np.ndarray:
        import xgboost

        names = self._learner.get("feature_names") or None
        options: dict[str, Any] = {"feature_names": names}
        if self.types:
            options = {"enable_categorical": True}
            options |= {} if self.codes else {"feature_names": names, "feature_types": self.types}
        matrix = xgboost.DMatrix(self._rows(table), missing=self.missing, **options)
        if start is not None:
            matrix.set_base_margin(np.full((len(table), self.width), start, dtype=np.float32))
        predicted: np.ndarray = self.booster.predict(
            matrix, output_margin=margin, iteration_range=self.iterations
        )
        return predicted

    def exact(self, table: Table) -> np.ndarray | None:
        """XGBoost adds each tree to the base score in FP32: with a target of 1e6, each of 400 trees
        loses everything below 0.03. Here the trees are summed without the base score."""
        if self.link != "identity" or self.linear is not None:
            return None
        raw = self._predicted(table, margin=True, start=0.0).astype(np.float64)
        return np.asarray(raw.reshape(len(table), -1) + self.start())

    def _rows(self, table: Table) -> Any:
        """A DataFrame if the model knows its columns' names, else an array."""
        if self.codes:
            return category_frame(table, self.columns, self.codes)
        names = self._learner.get("feature_names") or None
        rows = np.stack([table.columns[column.name] for column in self.columns], axis=1)
        if not names:
            return rows
        import pandas as pd

        return pd.DataFrame(rows, columns=list(names))

    def decide(self, table: Table) -> np.ndarray:
        if self._estimator is not None:
            decided = self._estimator.predict(
                self._rows(table), iteration_range=self._estimator_range
            )
            return np.asarray(decided).astype(np.int64)
        predicted = self._predicted(table)
        if self.objective == "multi:softmax":
            return predicted.astype(np.int64)
        return (predicted > 0.5).astype(np.int64) if predicted.ndim == 1 else predicted.argmax(1)

    def graph(self) -> onnx.ModelProto:
        missing = () if np.isnan(self.missing) else (self.missing,)
        if self.linear is not None:
            return linear_graph(*self.linear, self.start(), self.link, missing=missing)
        graph = tree_graph(
            self.trees,
            self.start(),
            self.link,
            len(self.columns),
            narrow=True,
            missing=missing,
            categories=self.categories,
        )
        return with_coded_inputs(graph, self.columns, self.codes) if self.order else graph

    def thresholds(self) -> Mapping[str, np.ndarray]:
        thresholds = thresholds_by_feature(self.trees, len(self.columns))
        names = (column.name for column in self.columns)
        return dict(zip(names, thresholds, strict=True))

    def forest(self, table: Table) -> Forest | None:
        rows = coded(table, self.columns, self.codes)
        with np.errstate(over="ignore"):
            numbers = rows.astype(np.float32).astype(np.float64)
        numbers[numbers == self.missing] = np.nan
        numbers = self.categories.numbers(numbers)
        return Forest(self.trees, numbers, not self.categories) if self.trees else None

    def marks(self) -> Mapping[str, Sequence[float]]:
        """The number that means a missing value is tested in every column."""
        if np.isnan(self.missing):
            return {}
        return {column.name: (self.missing,) for column in self.columns if not column.is_text}

    def start(self) -> np.ndarray:
        """The base score as raw scores FP64 [width]: the file has it as a prediction (a
        probability, a count)."""
        stored = self._learner["learner_model_param"]["base_score"]
        scores = np.array(json.loads(stored if "[" in stored else f"[{stored}]"), dtype=float)
        to_raw_score = UNLINKED.get(self.link.removesuffix(" one"), np.asarray)
        if self.linear is not None:
            scores = scores[:1]  # gblinear adds the first class's to every class
        return np.asarray(np.broadcast_to(to_raw_score(scores), (self.width,)), dtype=np.float64)

    def _used_trees(self) -> Iterator[Tree]:
        trees = list(_trees(self.path, self._learner, self.categories))
        begin, end = self.iterations
        if not end:
            yield from trees
            return
        booster = self._learner["gradient_booster"]
        model = booster.get("gbtree", booster)["model"]
        bounds = model.get("iteration_indptr") or range(
            0, len(trees) + 1, len(trees) // self.booster.num_boosted_rounds()
        )
        yield from trees[bounds[begin] : bounds[end]]


def _short_reason(error: Exception) -> str:
    """XGBoost's own message without its source location and stack."""
    text = " ".join(str(error).split()).partition("Stack trace")[0]
    return re.sub(r"^\[[\d:]+\] \S+: ", "", text).strip()[:200]


def _require_no_other_library(path: Path) -> None:
    """Raise SourceRefused if the JSON was written by another library or another function."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        return
    keys = set(document) if isinstance(document, dict) else set()
    if {"oblivious_trees", "features_info"} & keys:
        raise SourceRefused(
            f"{path} is a CatBoost model, which has no converter: save it with "
            "save_model('model.onnx', format='onnx') (one without categorical features of its "
            "own), remove the ZipMap at the end of a classifier, and pass that with --task tensors"
        )
    if "tree_info" in keys:
        raise SourceRefused(
            f"{path} is the output of LightGBM's dump_model, not a model: save it with "
            "booster_.save_model('model.txt')"
        )
    if isinstance(document, list):
        raise SourceRefused(
            f"{path} is a list (the output of XGBoost's dump_model?), not a model: save it with "
            "save_model('model.json')"
        )


def _missing(text: str) -> float:
    try:
        return float(np.float32(float(text)))
    except ValueError:
        raise SourceRefused(
            f"--missing {text}: give the number that means a missing value, such as -999, or nan"
        ) from None


def _linear(
    learner: Mapping[str, Any], features: int, width: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Weights FP64 [features, width] and bias [width] of ``gblinear``; None for trees."""
    booster = learner["gradient_booster"]
    if booster.get("name") != "gblinear":
        return None
    stored = np.array(booster["model"]["weights"], dtype=np.float32).astype(np.float64)
    weights = stored.reshape(features + 1, width)
    return weights[:-1], weights[-1]


def _trees(path: Path, learner: Mapping[str, Any], categories: CategorySplits) -> Iterator[Tree]:
    booster = learner["gradient_booster"]
    weights = booster.get("weight_drop")
    booster = booster.get("gbtree", booster)  # dart wraps it
    if "trees" not in booster.get("model", {}):
        raise SourceRefused(
            f"{path} has no trees ({booster.get('name')}): train with gbtree or dart"
        )
    model = booster["model"]
    for index, (tree, target) in enumerate(zip(model["trees"], model["tree_info"], strict=True)):
        if int(tree["tree_param"]["size_leaf_vector"]) > 1:
            raise SourceRefused(
                f"{path} has trees with several outputs (multi_output_tree): train with "
                "multi_strategy='one_output_per_tree'"
            )
        yield _tree(tree, int(target), weights[index] if weights else 1.0, categories)


def _tree(tree: Mapping[str, Any], target: int, weight: float, categories: CategorySplits) -> Tree:
    # The file writes FP32 numbers in their shortest form.
    conditions = np.array(tree["split_conditions"], dtype=np.float32).astype(np.float64)
    features, thresholds = np.array(tree["split_indices"]), conditions.copy()
    category_splits = zip(
        tree.get("categories_nodes", ()),
        tree.get("categories_segments", ()),
        tree.get("categories_sizes", ()),
        strict=True,
    )
    for node, start, size in category_splits:
        codes = tree["categories"][start : start + size]
        features[node] = categories.feature(int(features[node]), codes)
        thresholds[node] = 0.0
    return Tree(
        feature=features,
        threshold=thresholds,
        yes=np.array(tree["left_children"]),
        no=np.array(tree["right_children"]),
        missing=np.array(tree["default_left"], dtype=bool),
        value=conditions[:, None] * weight,
        mode=["BRANCH_LT"] * len(conditions),
        target=target,
    )
