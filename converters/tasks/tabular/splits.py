"""Rows on both sides of every split of a model's trees.

A tree's threshold that is off by 0.5 % moves only the rows between the two numbers, and a swapped
default moves only a missing number that reaches the split. So for each split there is a row that
reaches it and stands at its threshold, the same row just beyond it, the same with a missing value,
and one for each category. They are found by walking the trees from the root, whatever precedes
them: a step that reads one column (a scaler, an encoder) is inverted by bisection, and of columns
that are read together (PCA) pairs of rows are bisected.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from converters.export.trees2onnx import Tree
from converters.sources.tabular_model import Forest, TabularModel
from converters.table import MISSING, Column, Table
from converters.tasks.tabular.constructed import MAX_CATEGORIES, UNKNOWN, passes, visited_nodes
from converters.tasks.tabular.rows import (
    ExploredModel,
    answers_of,
    generated_rows,
    is_around_a_jump,
    partition_by_answer,
)

# A forest with more splits is sampled evenly, and the note says how many were reached.
MAX_SPLITS = 20_000
# The other columns of a split's rows are chosen this many times; those are used whose two leaves
# differ most, because a split between two equal leaves shows nothing.
TRIES = 3
PROBES, BASES, POOL = 48, 3, 800
# Bisecting two doubles of similar size down to neighbours takes fewer than 64 steps.
STEPS = 70
# No two libraries round a logarithm or a sum over columns alike: rows are this far from a jump.
APART = 1e-8


@dataclass(frozen=True)
class SplitRows:
    """The rows, and in one sentence how many splits they take both ways; "" without trees."""

    rows: Table
    note: str


@dataclass(frozen=True)
class _Part:
    """Columns that alone decide some of the trees' ``features`` INT [k]: candidate ``values`` for
    them, m rows, and what these make of the features, ``numbers`` FP64 [m, k]."""

    values: Table
    features: np.ndarray
    numbers: np.ndarray

    @property
    def is_joint(self) -> bool:
        return len(self.values.columns) > 1

    def number(self, feature: int) -> np.ndarray:
        """FP64 [m] of one of the features."""
        return np.asarray(self.numbers[:, int(np.flatnonzero(self.features == feature)[0])])


@dataclass(frozen=True)
class _Side:
    """A row beside a split: for each part the index of its values."""

    tree: int
    node: int
    choices: np.ndarray


def split_rows(explored: ExploredModel, rows: Table, rng: np.random.Generator) -> SplitRows:
    """Rows for the splits of at most ``MAX_SPLITS`` nodes; ``rows`` are rows that the model
    predicts. Without trees, or if texts precede them, there are none."""
    model, none = explored.model, SplitRows(rows.rows(slice(0, 0)), "")
    forest = model.forest(rows.rows(slice(0, 1)))
    if not forest or model.text_parts() or not len(rows):
        return none
    # Two rows that were bisected to neighbours are too near a jump to be moved away from it.
    apart = rows.rows(np.flatnonzero(~is_around_a_jump(rows)))
    pool = partition_by_answer(model, generated_rows(explored, rng, POOL))[0].join(apart)
    if not len(pool):
        return none
    parts = _parts(explored, forest, pool, rng)
    if not parts:
        return none
    sides = _Walk(forest, parts, rng).sides()
    if not sides:
        return none
    table = _assembled(pool, parts, sides)
    for part in parts:
        if part.is_joint:
            table = _beside_jumps(explored, forest, table, part, sides)
    is_usable = np.isfinite(answers_of(model, table)).all(axis=1)
    kept = np.flatnonzero(is_usable)
    table, sides = table.rows(kept), [sides[index] for index in kept]
    return SplitRows(table, _note(model, forest, table, sides))


def _numbers_of(explored: ExploredModel) -> set[str]:
    """The columns that may have any number: not texts, and not categories that are numbers."""
    return {column.name for column in explored.columns if not (column.is_text or column.values)}


# Which columns decide which features


def _parts(
    explored: ExploredModel, forest: Forest, pool: Table, rng: np.random.Generator
) -> list[_Part]:
    used = np.unique(np.concatenate([tree.feature[~tree.leaves] for tree in forest.trees]))
    base = pool.rows(rng.permutation(len(pool))[:BASES])
    probes = {
        column.name: _accepted(explored.model, base, column, _probes(explored, column, pool, rng))
        for column in explored.columns
    }
    fed = {
        name: np.intersect1d(used, _moved(explored.model, base, name, values))
        for name, values in probes.items()
    }
    parts = []
    for names in _joined(fed):
        features = np.unique(np.concatenate([fed[name] for name in names]))
        if not len(features):
            continue
        if len(names) == 1:
            values = probes[names[0]]
            if names[0] in _numbers_of(explored):
                values = _with_edges(explored, forest, base, names[0], values, features)
            table = Table({names[0]: values}, [""] * len(values))
        else:
            table = Table({name: pool.columns[name] for name in names}, [""] * len(pool))
        numbers = _numbers(explored.model, _on(base, table))
        parts.append(_Part(table, features, numbers[:, features]))
    return parts


def _accepted(model: TabularModel, base: Table, column: Column, values: np.ndarray) -> np.ndarray:
    """The values of this column that the model predicts in the first row of ``base``."""
    rows = _on(base, Table({column.name: values}, [""] * len(values)))
    accepted = partition_by_answer(model, rows)[0].columns[column.name]
    return accepted if len(accepted) else base.columns[column.name][:1]


def _probes(
    explored: ExploredModel, column: Column, pool: Table, rng: np.random.Generator
) -> np.ndarray:
    """Values that a column may have, of every kind that the model takes."""
    if column.is_text:
        texts = [*column.categories[:MAX_CATEGORIES], *([UNKNOWN] if column.open else [])]
        texts += [MISSING] if column.nullable else []
        texts += [""] if column.open else []
        return np.array(list(dict.fromkeys(texts)) or ["a"], dtype=np.str_)
    missing = [np.nan] if column.nullable else []
    if column.values:
        unknown = [max(column.values) + 1] if column.open else []
        return np.array([*column.values[:MAX_CATEGORIES], *unknown, *missing])
    centre, spread = column.centre or 0.0, column.spread or 1.0
    known = pool.columns[column.name]
    known = rng.permutation(np.unique(known[np.isfinite(known)]))[:PROBES]
    marks = explored.model.marks().get(column.name, ())
    away = [centre + spread * factor for factor in (-40, -10, -3, 0, 3, 10, 40)]
    return np.array([*known, *away, *marks, *missing], dtype=np.float64)


def _moved(model: TabularModel, base: Table, name: str, values: np.ndarray) -> np.ndarray:
    """The features, INT, that some value of this column changes in some row of ``base``."""
    moved: set[int] = set()
    for row in range(len(base)):
        start = base.rows(np.full(len(values) + 1, row))
        column = np.concatenate([start.columns[name][:1], values])
        numbers = _numbers(model, Table({**start.columns, name: column}, start.labels))
        differs = numbers[1:] != numbers[0]
        differs &= ~(np.isnan(numbers[1:]) & np.isnan(numbers[0]))
        moved |= set(np.flatnonzero(differs.any(axis=0)).tolist())
    return np.array(sorted(moved), dtype=np.int64)


def _joined(fed: Mapping[str, np.ndarray]) -> list[list[str]]:
    """The columns in groups: those that decide a feature together are in one."""
    groups: list[tuple[set[str], set[int]]] = []
    for name, features in fed.items():
        names, together, apart = {name}, set(features.tolist()), []
        for group in groups:
            if group[1] & together:
                names |= group[0]
                together |= group[1]
            else:
                apart.append(group)
        groups = [*apart, (names, together)]
    return [[name for name in fed if name in names] for names, _ in groups]


def _with_edges(
    explored: ExploredModel,
    forest: Forest,
    base: Table,
    name: str,
    values: np.ndarray,
    features: np.ndarray,
) -> np.ndarray:
    """The values, and both sides of each place where this column of numbers crosses a threshold of
    one of its features."""
    splits = _distinct_splits(forest.trees, features)
    if not len(splits):
        return values
    feature, threshold, mode = (np.array(column) for column in zip(*splits, strict=True))
    feature = feature.astype(np.int64)
    model, single = explored.model, explored.model.number == "FP32"

    def read_at(numbers: np.ndarray) -> np.ndarray:
        rows = base.rows(np.zeros(len(numbers), dtype=int))
        return _numbers(model, Table({**rows.columns, name: numbers}, rows.labels))

    def sides(numbers: np.ndarray, which: np.ndarray) -> np.ndarray:
        read = read_at(numbers)
        return passes(mode[which], read[np.arange(len(read)), feature[which]], threshold[which])

    with np.errstate(over="ignore"):
        direct = threshold.astype(np.float32).astype(np.float64) if single else threshold
    if forest.direct:
        edges = [direct]
        if not single:
            edges += [np.nextafter(threshold, -np.inf), np.nextafter(threshold, np.inf)]
    else:
        grid = np.unique(values[np.isfinite(values)])
        crossed = np.stack([passes(mode, row[feature], threshold) for row in read_at(grid)], axis=1)
        which, at = np.nonzero(crossed[:, 1:] != crossed[:, :-1])
        which, first = np.unique(which, return_index=True)
        at = at[first]
        low, high, before = grid[at], grid[at + 1], crossed[which, at]
        for _ in range(STEPS if len(which) else 0):
            middle = low + (high - low) / 2
            same = sides(middle, which) == before
            low, high = np.where(same, middle, low), np.where(same, high, middle)
        if model.rounds:
            away = APART * np.maximum(np.abs(low), np.abs(high))
            low, high = low - away, high + away
        edges = [low, high]
    with np.errstate(over="ignore"):
        narrow = np.concatenate(edges).astype(np.float32)
        beside = [np.nextafter(narrow, np.float32(side)) for side in (-np.inf, np.inf)]
    edges += [side.astype(np.float64) for side in beside]
    if single or forest.direct:
        edges.append(narrow.astype(np.float64))
    numbers = np.unique(np.concatenate(edges))
    return np.concatenate([values, numbers[np.isfinite(numbers)]])


def _distinct_splits(trees: Sequence[Tree], features: np.ndarray) -> list[tuple[int, float, str]]:
    splits = {
        (int(tree.feature[node]), float(tree.threshold[node]), str(tree.mode[node]))
        for tree in trees
        for node in np.flatnonzero(~tree.leaves & np.isin(tree.feature, features))
    }
    return sorted(splits)[:MAX_SPLITS]


def _numbers(model: TabularModel, rows: Table) -> np.ndarray:
    """The trees' inputs FP64 [n, features]."""
    forest = model.forest(rows)
    if forest is None:
        raise ValueError("the model has no trees")
    return forest.numbers


def _on(base: Table, values: Table) -> Table:
    """The first row of ``base`` with each of the values."""
    rows = base.rows(np.zeros(len(values), dtype=int))
    return Table({**rows.columns, **values.columns}, rows.labels)


# The walk


class _Walk:
    """Walks down each tree with the candidates of each part that reach the node."""

    def __init__(self, forest: Forest, parts: Sequence[_Part], rng: np.random.Generator) -> None:
        self._trees, self._parts, self._rng = forest.trees, parts, rng
        self._part_of = {
            int(feature): index for index, part in enumerate(parts) for feature in part.features
        }
        self._sizes = np.array([len(part.values) for part in parts])
        self._rest = forest.numbers[0]
        self._number = {
            feature: parts[index].number(feature) for feature, index in self._part_of.items()
        }
        # Lists, because single numbers of arrays are slow to read.
        self._nodes = [
            list(
                zip(
                    tree.feature.tolist(),
                    tree.threshold.tolist(),
                    tree.yes.tolist(),
                    tree.no.tolist(),
                    tree.missing.tolist(),
                    tree.mode,
                    strict=True,
                )
            )
            for tree in forest.trees
        ]

    def sides(self) -> list[_Side]:
        total = sum(int((~tree.leaves).sum()) for tree in self._trees)
        is_chosen = np.zeros(total, dtype=bool)
        is_chosen[np.linspace(0, total - 1, min(total, MAX_SPLITS)).astype(int)] = True
        sides: list[_Side] = []
        start = 0
        for index, tree in enumerate(self._trees):
            inner = np.flatnonzero(~tree.leaves)
            chosen = set(inner[is_chosen[start : start + len(inner)]].tolist())
            start += len(inner)
            sides += self._of_tree(index, tree, chosen)
        return sides

    def _of_tree(self, index: int, tree: Tree, chosen: set[int]) -> Iterator[_Side]:
        stack: list[tuple[int, dict[int, np.ndarray]]] = [(0, {})]
        while stack:
            node, reached = stack.pop()
            feature = int(tree.feature[node])
            if tree.yes[node] < 0:
                continue
            part = self._part_of.get(feature)
            if part is None:  # nothing that a client sends changes this feature
                continue
            candidates = reached.get(part)
            if candidates is None:
                candidates = np.arange(self._sizes[part])
            number = self._number[feature][candidates]
            yes = passes(tree.mode[node], number, tree.threshold[node], tree.missing[node])
            if node in chosen:
                yield from self._beside(index, node, reached, part, candidates, number, yes)
            for child, side in ((tree.yes[node], yes), (tree.no[node], ~yes)):
                if side.any():
                    stack.append((int(child), {**reached, part: candidates[side]}))

    def _beside(
        self,
        index: int,
        node: int,
        reached: Mapping[int, np.ndarray],
        part: int,
        candidates: np.ndarray,
        number: np.ndarray,
        yes: np.ndarray,
    ) -> Iterator[_Side]:
        tree, is_nan = self._trees[index], np.isnan(number)
        nearest = [
            self._nearest(candidates[side], number[side], float(tree.threshold[node]))
            for side in (yes & ~is_nan, ~yes & ~is_nan)
        ]
        ends = [int(end) for end in nearest if end is not None]
        choices = self._choices(reached)
        choices = choices[self._best(index, choices, part, ends)] if len(ends) > 1 else choices[0]
        if not self._parts[part].is_joint:
            # Few numbers are categories: each is on a side of its own.
            if len(np.unique(number[~is_nan])) <= 2 or len(candidates) <= 4:
                ends = self._rng.permutation(candidates[~is_nan])[:MAX_CATEGORIES].tolist()
            ends += candidates[is_nan][:1].tolist()
        for end in ends:
            row = choices.copy()
            row[part] = end
            yield _Side(index, node, row)

    def _nearest(self, candidates: np.ndarray, number: np.ndarray, threshold: float) -> int | None:
        if not len(candidates):
            return None
        # LightGBM's thresholds between a number and a missing one are infinite.
        away = np.zeros(len(number))
        np.subtract(number, threshold, out=away, where=number != threshold)
        away = np.abs(away)
        return int(self._rng.choice(candidates[away == away.min()]))

    def _choices(self, reached: Mapping[int, np.ndarray]) -> np.ndarray:
        """INT [TRIES, parts]: any values of each part that reach the node."""
        choices = self._rng.integers(self._sizes, size=(TRIES, len(self._sizes)))
        for part, candidates in reached.items():
            choices[:, part] = candidates[self._rng.integers(len(candidates), size=TRIES)]
        return np.asarray(choices)

    def _best(self, index: int, choices: np.ndarray, part: int, ends: Sequence[int]) -> int:
        """The index of the choice whose rows end in the most different leaves."""
        gaps = []
        for choice in choices.tolist():
            values = []
            for end in ends[:2]:
                choice[part] = end
                values.append(self._leaf(index, choice))
            gaps.append(float(np.abs(values[0] - values[1]).max()))
        return int(np.argmax(gaps))

    def _leaf(self, index: int, choice: Sequence[int]) -> np.ndarray:
        """The value of the leaf at which this row ends."""
        nodes = self._nodes[index]
        node = 0
        while True:
            feature, threshold, yes, no, missing, mode = nodes[node]
            if yes < 0:
                return np.asarray(self._trees[index].value[node])
            part = self._part_of.get(feature)
            number = self._rest[feature] if part is None else self._number[feature][choice[part]]
            if number != number:
                is_yes = missing
            elif mode == "BRANCH_LEQ":
                is_yes = number <= threshold
            else:
                is_yes = number < threshold if mode == "BRANCH_LT" else number == threshold
            node = yes if is_yes else no


def _assembled(pool: Table, parts: Sequence[_Part], sides: Sequence[_Side]) -> Table:
    """The rows of the sides; a column that decides nothing has the first row's value."""
    rows = pool.rows(np.zeros(len(sides), dtype=int))
    columns = dict(rows.columns)
    choices = np.stack([side.choices for side in sides])
    for index, part in enumerate(parts):
        columns |= part.values.rows(choices[:, index]).columns
    return Table(columns, [f"beside split {side.node} of tree {side.tree}" for side in sides])


def _beside_jumps(
    explored: ExploredModel, forest: Forest, table: Table, part: _Part, sides: Sequence[_Side]
) -> Table:
    """The rows with the two of each split of this part, whose columns are read together, moved
    towards each other until they stand on both sides of its threshold."""
    model = explored.model
    names = [name for name in part.values.columns if name in _numbers_of(explored)]
    pairs = [
        first
        for first, (side, other) in enumerate(pairwise(sides))
        if (side.tree, side.node) == (other.tree, other.node)
        and forest.trees[side.tree].feature[side.node] in part.features
    ]
    if not pairs or not names:
        return table
    low, high = np.array(pairs), np.array(pairs) + 1
    starts = np.stack([table.columns[name][low] for name in names], axis=1)
    ends = np.stack([table.columns[name][high] for name in names], axis=1)
    whole = np.isfinite(starts).all(axis=1) & np.isfinite(ends).all(axis=1)
    low, high, starts, ends = low[whole], high[whole], starts[whole], ends[whole]
    splits = [(forest.trees[sides[row].tree], sides[row].node) for row in low]
    feature = np.array([int(tree.feature[node]) for tree, node in splits], dtype=np.int64)
    threshold = np.array([float(tree.threshold[node]) for tree, node in splits])
    mode = np.array([str(tree.mode[node]) for tree, node in splits])

    def at(share: np.ndarray) -> dict[str, np.ndarray]:
        moved = starts + (ends - starts) * share[:, None]
        return {name: moved[:, index] for index, name in enumerate(names)}

    def yes(share: np.ndarray) -> np.ndarray:
        rows = table.rows(low)
        numbers = _numbers(model, Table({**rows.columns, **at(share)}, rows.labels))
        return passes(mode, numbers[np.arange(len(numbers)), feature], threshold)

    before = yes(np.zeros(len(low)))
    below, above = np.zeros(len(low)), np.ones(len(low))
    for _ in range(STEPS):
        middle = (below + above) / 2
        same = yes(middle) == before
        below, above = np.where(same, middle, below), np.where(same, above, middle)
    columns = {name: values.copy() for name, values in table.columns.items()}
    nearer = {
        "low": (low, at(np.maximum(below - 10 * APART, 0.0))),
        "high": (high, at(np.minimum(above + 10 * APART, 1.0))),
    }
    for rows, numbers in nearer.values():
        for name in names:
            columns[name][rows] = numbers[name]
    return Table(columns, table.labels)


def _note(model: TabularModel, forest: Forest, rows: Table, sides: Sequence[_Side]) -> str:
    """How many of all splits these rows take both ways."""
    numbers = _numbers(model, rows)
    tree_of = np.array([side.tree for side in sides])
    total, unreached = 0, []
    for index, tree in enumerate(forest.trees):
        inner = np.flatnonzero(~tree.leaves)
        visited = visited_nodes(tree, numbers[tree_of == index])
        both = visited[tree.yes[inner]] & visited[tree.no[inner]]
        total += len(inner)
        unreached += [f"tree {index} split {node}" for node in inner[~both]]
    rest = f" and {len(unreached) - 5} more" if len(unreached) > 5 else ""
    names = f"; not both ways: {', '.join(unreached[:5])}{rest}" if unreached else ""
    return (
        f"{len(rows)} more rows, predicted together, took {total - len(unreached)} of {total} "
        f"splits of the trees both ways, beside their thresholds{names}"
    )
