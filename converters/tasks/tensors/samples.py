"""Rows to prove a model of plain tensors with: the user's, or seeded variations of an example."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from converters.errors import SourceMissing, SourceRefused
from converters.export.tensor_info import TensorInfo
from converters.sample_texts import SAMPLE_LIMIT
from converters.sources.archive import require_no_bomb
from converters.sources.made_up_rows import ROWS, SEED
from converters.sources.tensor_source import NUMPY_TYPES, Batch

UNCHANGED_ROWS = 8  # of the example's own rows
TABLE_ROWS = 256  # at most, added so that all rows of a table are read


def read_npz(path: Path, inputs: Sequence[TensorInfo]) -> list[Batch]:
    """One group of rows from an ``.npz`` whose arrays are named as the inputs; SourceMissing or
    SourceRefused names the array."""
    if not path.is_file():
        raise SourceMissing(f"there is no file {path}: give an .npz with an array for each input")
    if path.suffix != ".npz":
        raise SourceRefused(
            f"{path} is not an .npz with an array for each input "
            f"({', '.join(tensor.name for tensor in inputs)}): write it with "
            f"numpy.savez('samples.npz', {inputs[0].name}=rows)"
        )
    require_no_bomb(path)
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise SourceRefused(
            f"{path} is not an .npz of plain arrays ({' '.join(str(error).split())[:160]}): write "
            "it with numpy.savez"
        ) from error
    expected = [tensor.name for tensor in inputs]
    if set(arrays) != set(expected):
        raise SourceRefused(
            f"{path} has the arrays {sorted(arrays)}, and the model takes {sorted(expected)}"
        )
    group = {tensor.name: _fitted(path, tensor, arrays[tensor.name]) for tensor in inputs}
    rows = {len(values) for values in group.values()}
    if len(rows) > 1 or rows == {0}:
        raise SourceRefused(
            f"{path}: its arrays have {sorted(rows)} rows: give the same number in each, at least 1"
        )
    return [{name: values[:SAMPLE_LIMIT] for name, values in group.items()}]


def _fitted(path: Path, tensor: TensorInfo, values: np.ndarray) -> np.ndarray:
    subject = f"{path}: {tensor.name!r}"
    fits = values.ndim == len(tensor.dims) + 1 and all(
        expected in (-1, actual)
        for expected, actual in zip(tensor.dims, values.shape[1:], strict=True)
    )
    if not fits:
        raise SourceRefused(
            f"{subject} has shape {list(values.shape)}, and the model takes [n, "
            f"{', '.join(map(str, tensor.dims))}]: the first axis is the samples"
        )
    numpy_type = NUMPY_TYPES[tensor.dtype]
    if (values.dtype.kind in "US") != (tensor.dtype == "BYTES"):
        raise SourceRefused(f"{subject} holds {values.dtype}, and the model takes {tensor.dtype}")
    # float64 to float32 is what clients do too; 1.5 is not an integer.
    if not np.can_cast(values.dtype, numpy_type, casting="same_kind"):
        raise SourceRefused(
            f"{subject} holds {values.dtype}, and the model takes {tensor.dtype}: convert it with "
            f".astype('{np.dtype(numpy_type)}')"
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0][0])
        raise SourceRefused(f"{subject} row {row} is not finite: leave it out")
    return values.astype(numpy_type)


def whole_tables(groups: Sequence[Batch], ids: Mapping[str, np.ndarray]) -> list[Batch]:
    """The groups with ids from the whole range of each integer input (``ids``: ``id_counts``),
    shuffled, and with enough more rows to have every id once, at most ``TABLE_ROWS``. The first
    rows are unchanged."""
    if not ids:
        return list(groups)
    generator = np.random.default_rng(SEED)
    return [_with_all_ids(group, ids, generator) for group in groups]


def _with_all_ids(
    group: Batch, ids: Mapping[str, np.ndarray], generator: np.random.Generator
) -> dict[str, np.ndarray]:
    rows = len(next(iter(group.values())))
    kept = min(rows, UNCHANGED_ROWS)
    needed = [_rows_for(counts, group[name][0].size) for name, counts in ids.items()]
    count = max(rows, kept + min(TABLE_ROWS, max(needed, default=0)))
    grown = {name: np.resize(values, (count, *values.shape[1:])) for name, values in group.items()}
    for name, counts in ids.items():
        largest = np.where(counts > 0, counts - 1, np.iinfo(grown[name].dtype).max)
        grown[name] = np.minimum(grown[name], largest).astype(grown[name].dtype)
        added = grown[name][kept:]
        if not counts.ndim:
            added[:] = _spread_ids(int(counts), added.size, generator).reshape(added.shape)
            continue
        for index, position in enumerate(np.ndindex(counts.shape)):
            if counts[position]:
                column, shift = (slice(None), *position), index / counts.size
                added[column] = _spread_ids(int(counts[position]), len(added), generator, shift)
    return grown


def _rows_for(counts: np.ndarray, size: int) -> int:
    """How many rows of ``size`` elements it takes to have every id once."""
    return int(counts.max()) if counts.ndim else -(-int(counts) // max(1, size))


def _spread_ids(
    count: int, length: int, generator: np.random.Generator, shift: float = 0.0
) -> np.ndarray:
    """``length`` ids, shuffled, spread evenly from 0 to ``count`` - 1. ``shift``, from 0 to 1,
    chooses others where not all fit: columns may share one table."""
    distinct = min(count, length)
    ids = np.linspace(0, count - 1, distinct) + (
        shift * count / distinct if distinct < count else 0
    )
    ids = np.minimum(ids.round(), count - 1).astype(np.int64)
    ids[0] = 0
    return np.resize(generator.permutation(ids), length)


def variations(example: Mapping[str, np.ndarray], inputs: Sequence[TensorInfo]) -> list[Batch]:
    """The example's rows, and ``ROWS`` more within the range of its values."""
    generator = np.random.default_rng(SEED)
    return [
        {
            tensor.name: np.concatenate(
                [example[tensor.name], _varied(example[tensor.name], generator)]
            )
            for tensor in inputs
        }
    ]


def _varied(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    shape = (ROWS, *values.shape[1:])
    if values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        if low == high:  # torch.zeros, most often
            low, high = low - 1, high + 1
        return generator.uniform(low, high, shape).astype(values.dtype)
    if values.dtype.kind == "U":
        return np.asarray(generator.choice(values.reshape(-1), shape))
    low, high = int(values.min()), int(values.max())
    if low < high:
        dtype = np.int64 if values.dtype.kind == "b" else values.dtype
        drawn = generator.integers(low, high, shape, endpoint=True, dtype=dtype)
        return np.asarray(drawn.astype(values.dtype))
    # A constant (torch.zeros, a mask of ones) does not show what the input does: other values are
    # drawn, except for the first of a row, so that a mask leaves something.
    candidates = {0: (0, 1, 2), 1: (0, 1)}.get(low, (low, low - 1, low + 1))
    if values.dtype.kind == "b":
        candidates = (0, 1)
    drawn = generator.choice(np.array(candidates), shape).astype(values.dtype)
    if values[0].size > 1:
        drawn.reshape(len(drawn), -1)[:, 0] = values.flat[0]
    return np.asarray(drawn)
