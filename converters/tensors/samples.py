"""Rows to prove a model of plain tensors on: the user's, or seeded variations of an example."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from converters.errors import SourceMissing, SourceRefused
from converters.sources.archive import require_no_bomb
from converters.sources.tensor_source import NUMPY_TYPES, Group, TensorInfo
from converters.text.sample_files import SAMPLE_LIMIT

ROWS = 24
# Of the example's own rows so many stay as they are; a table is read by so many more at most.
OWN_ROWS = 8
TABLE_ROWS = 256
LENGTHS = (1, 7, 16)  # of an axis of any length, where nobody said
SEED = 20240229


def read_npz(path: Path, inputs: Sequence[TensorInfo]) -> list[Group]:
    """One group of rows from an ``.npz`` whose arrays are named as the inputs; SourceMissing or
    SourceRefused names the array."""
    if not path.is_file():
        raise SourceMissing(f"there is no file {path}: give an .npz with an array for each input")
    if path.suffix != ".npz":
        raise SourceRefused(
            f"{path} is not an .npz with an array for each input "
            f"({', '.join(port.name for port in inputs)}): write it with "
            f"numpy.savez('samples.npz', {inputs[0].name}=rows)"
        )
    require_no_bomb(path)
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise SourceRefused(
            f"{path} is no .npz of plain arrays ({' '.join(str(error).split())[:160]}): write it "
            "with numpy.savez"
        ) from error
    wanted = [port.name for port in inputs]
    if set(arrays) != set(wanted):
        raise SourceRefused(
            f"{path} has the arrays {sorted(arrays)}, and the model takes {sorted(wanted)}"
        )
    group = {port.name: _fitted(path, port, arrays[port.name]) for port in inputs}
    rows = {len(values) for values in group.values()}
    if len(rows) > 1 or rows == {0}:
        raise SourceRefused(f"{path}: its arrays have {sorted(rows)} rows: give as many of each")
    return [{name: values[:SAMPLE_LIMIT] for name, values in group.items()}]


def _fitted(path: Path, port: TensorInfo, values: np.ndarray) -> np.ndarray:
    where = f"{path}: {port.name!r}"
    fits = values.ndim == len(port.dims) + 1 and all(
        want in (-1, got) for want, got in zip(port.dims, values.shape[1:], strict=True)
    )
    if not fits:
        raise SourceRefused(
            f"{where} has shape {list(values.shape)}, and the model takes [n, "
            f"{', '.join(map(str, port.dims))}]: the first axis is the samples"
        )
    kind = NUMPY_TYPES[port.dtype]
    if (values.dtype.kind in "US") != (port.dtype == "BYTES"):
        raise SourceRefused(f"{where} holds {values.dtype}, and the model takes {port.dtype}")
    # float64 to float32 is what a client does too; 1.5 is no integer.
    if not np.can_cast(values.dtype, kind, casting="same_kind"):
        raise SourceRefused(
            f"{where} holds {values.dtype}, and the model takes {port.dtype}: convert it with "
            f".astype('{np.dtype(kind)}')"
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise SourceRefused(f"{where} row {_first_odd(values)} is not finite: leave it out")
    return values.astype(kind)


def _first_odd(values: np.ndarray) -> int:
    return int(np.argwhere(~np.isfinite(values))[0][0])


def whole_tables(groups: Sequence[Group], ids: Mapping[str, np.ndarray]) -> list[Group]:
    """The groups with ids from all that each input of whole numbers takes (``ids``: ``id_counts``),
    shuffled, and with as many rows more as it takes to give every id once, at most
    ``TABLE_ROWS``. The first rows stay as they are."""
    if not ids:
        return list(groups)
    generator = np.random.default_rng(SEED)
    return [_reading(group, ids, generator) for group in groups]


def _reading(
    group: Group, ids: Mapping[str, np.ndarray], generator: np.random.Generator
) -> dict[str, np.ndarray]:
    rows = len(next(iter(group.values())))
    own = min(rows, OWN_ROWS)
    needed = [_rows_for(counts, group[name][0].size) for name, counts in ids.items()]
    wanted = max(rows, own + min(TABLE_ROWS, max(needed, default=0)))
    grown = {name: np.resize(values, (wanted, *values.shape[1:])) for name, values in group.items()}
    for name, counts in ids.items():
        most = np.where(counts > 0, counts - 1, np.iinfo(grown[name].dtype).max)
        grown[name] = np.minimum(grown[name], most).astype(grown[name].dtype)
        place = grown[name][own:]
        if not counts.ndim:
            place[:] = _all_over(int(counts), place.size, generator).reshape(place.shape)
            continue
        for turn, column in enumerate(np.ndindex(counts.shape)):
            if counts[column]:
                at, shift = (slice(None), *column), turn / counts.size
                place[at] = _all_over(int(counts[column]), len(place), generator, shift)
    return grown


def _rows_for(counts: np.ndarray, size: int) -> int:
    """How many rows of ``size`` elements give every id once."""
    return int(counts.max()) if counts.ndim else -(-int(counts) // max(1, size))


def _all_over(
    count: int, wanted: int, generator: np.random.Generator, shift: float = 0.0
) -> np.ndarray:
    """So many ids below ``count``, from the first to the last, shuffled. ``shift``, from 0 to 1,
    takes others of those that are left out: columns may share one table."""
    few = min(count, wanted)
    ids = np.linspace(0, count - 1, few) + (shift * count / few if few < count else 0)
    ids = np.minimum(ids.round(), count - 1).astype(np.int64)
    ids[0] = 0
    return np.resize(generator.permutation(ids), wanted)


def variations(example: Mapping[str, np.ndarray], inputs: Sequence[TensorInfo]) -> list[Group]:
    """The example's rows, and ``ROWS`` more in its range: integers stay within those that it
    has."""
    generator = np.random.default_rng(SEED)
    return [
        {
            port.name: np.concatenate([example[port.name], _varied(example[port.name], generator)])
            for port in inputs
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
        kind = np.int64 if values.dtype.kind == "b" else values.dtype
        drawn = generator.integers(low, high, shape, endpoint=True, dtype=kind)
        return np.asarray(drawn.astype(values.dtype))
    # Always the same (torch.zeros, a mask of ones) says nothing of what it does: others are tried,
    # but for the first of a row, so that a mask leaves something.
    others = {0: (0, 1, 2), 1: (0, 1)}.get(low, (low, low - 1, low + 1))
    if values.dtype.kind == "b":
        others = (0, 1)
    drawn = generator.choice(np.array(others), shape).astype(values.dtype)
    if values[0].size > 1:
        drawn.reshape(len(drawn), -1)[:, 0] = values.flat[0]
    return np.asarray(drawn)


def made_up(inputs: Sequence[TensorInfo]) -> list[Group]:
    """Rows for a graph of which nothing is known but its inputs: normal floats, integers 0 and 1; a
    group for each of ``LENGTHS`` where an axis may have any."""
    generator = np.random.default_rng(SEED)
    lengths = LENGTHS if any(-1 in port.dims for port in inputs) else LENGTHS[:1]
    return [{port.name: _made_up(port, length, generator) for port in inputs} for length in lengths]


def _made_up(port: TensorInfo, length: int, generator: np.random.Generator) -> np.ndarray:
    shape = (ROWS, *(length if dim == -1 else dim for dim in port.dims))
    kind = NUMPY_TYPES[port.dtype]
    if port.dtype == "BYTES":
        return generator.choice(np.array(["", "a", "b c", "größer", "高兴"]), shape)
    if np.dtype(kind).kind == "f":
        # Short numbers: one row of them is the golden sample, which travels as JSON.
        return generator.standard_normal(shape).round(3).astype(kind)
    return generator.integers(0, 1, shape, endpoint=True).astype(kind)
