"""What the library that trained a model predicts, row by row, in a separate process.

python -m converters.tasks.tabular.reference MODEL OPTIONS SIZE ROWS.npz ANSWERS.npz
"""

import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from converters.errors import SourceRefused
from converters.proof.reference_process import ask, fp32_noise
from converters.sources.tabular_file import open_model
from converters.sources.tabular_model import TabularModel
from converters.table import Table
from converters.tasks.tabular.rows import is_around_a_jump

# The number of rows that are predicted again, from the last to the first.
REPEATED_ROWS = 48
TOGETHER = 4096  # how many of the rows that are too many to be predicted alone are one request
# Far more than the rounding of a few FP64 operations, far less than an FP32 number's last digit.
ROUNDING = 1e-11
MOVES = 6


def ask_library(
    model: Path, options: Mapping[str, str], rows: Table, work_dir: Path
) -> dict[str, np.ndarray]:
    """The library's ``answers`` FP64 [n, labels] or [n, 1], predicted one row at a time, and their
    ``answers_noise``.

    A sample of the rows is predicted again, backwards, in a fresh process: SourceRefused if a
    prediction depends on the rows before it.
    """
    predicted = _predict(model, options, rows, work_dir / "rows")
    predictions = predicted["answers"]
    count = min(REPEATED_ROWS, len(rows))
    sample = np.unique(np.linspace(0, len(rows) - 1, count).astype(int))[::-1]
    repeated = _predict(model, options, rows.rows(sample), work_dir / "again")["answers"]
    limit = 1e-9 * (1 + np.abs(predictions[sample]))
    differs = (np.abs(repeated - predictions[sample]) > limit).any(axis=1)
    if differs.any():
        index = int(np.flatnonzero(differs)[0])
        raise SourceRefused(
            f"{model} predicts differently in another order: {rows.labels[sample[index]]} got "
            f"{predictions[sample[index]].tolist()} and, predicted again, "
            f"{repeated[index].tolist()}. Such a model has no prediction to prove: fix its "
            "random_state, or remove its memory of earlier rows"
        )
    return predicted


def ask_together(
    model: Path, options: Mapping[str, str], rows: Table, work_dir: Path
) -> dict[str, np.ndarray]:
    """The library's ``answers`` to many rows, ``TOGETHER`` in a request, and their
    ``answers_noise``."""
    return _predict(model, options, rows, work_dir / "together", TOGETHER)


def _predict(
    model: Path, options: Mapping[str, str], rows: Table, stem: Path, size: int = 1
) -> dict[str, np.ndarray]:
    rows_file, answers_file = stem.with_suffix(".npz"), stem.with_suffix(".answers.npz")
    np.savez(rows_file, **rows.arrays())
    arguments = (model, json.dumps(dict(options)), str(size), rows_file)
    return ask("converters.tasks.tabular.reference", *arguments, answers=answers_file)


def main(model: str, options: str, size: str, rows_file: str, answers_file: str) -> None:
    from threadpoolctl import threadpool_limits

    warnings.simplefilter("ignore")
    with np.load(rows_file) as stored:
        table = Table.from_arrays(stored)
    library_model, predictions = open_model(Path(model), json.loads(options)), []
    with threadpool_limits(1):
        for row in range(0, len(table), int(size)):
            try:
                predictions.append(library_model.scores(table.rows(slice(row, row + int(size)))))
            except Exception as error:  # the library can raise anything
                sys.exit(f"it refuses {table.labels[row]}: {' '.join(str(error).split())[:300]}")
    predicted = np.concatenate(predictions)
    noise = noise_of_answers(library_model, table, predicted)
    np.savez(answers_file, answers=predicted, **noise)


def noise_of_answers(
    model: TabularModel, table: Table, predictions: np.ndarray
) -> dict[str, np.ndarray]:
    """The FP32 rounding error of the library's ``predictions`` [n, ...] for these rows, if it
    computes in FP32: ``answers_noise``."""

    def exact(positions: list[int]) -> dict[str, np.ndarray]:
        precise = model.exact(table.rows(np.array(positions)))
        return {"answers": predictions[positions] if precise is None else precise}

    noise = fp32_noise({"answers": predictions}, exact)
    if model.rounds:
        beside = _noise_beside_jumps(model, table, predictions)
        noise["answers_noise"] = np.maximum(noise.get("answers_noise", 0.0), beside)
    return noise


def _noise_beside_jumps(model: TabularModel, table: Table, predictions: np.ndarray) -> np.ndarray:
    """How far each of ``predictions`` moves if the row's numbers, or those that the last step
    reads, move by ``ROUNDING``: for the rows around a jump, 0 for the others. Each number moves by
    itself, because a norm divides by what all have in common."""
    noise = np.zeros(predictions.shape)
    around = is_around_a_jump(table)
    if not around.any():
        return noise
    rows, original = table.rows(np.flatnonzero(around)), predictions[around]
    largest = np.zeros(original.shape)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (MOVES, len(rows.columns)))
    signs[0], signs[1] = 1.0, -1.0
    categories = {column.name for column in model.columns if column.is_text or column.values}
    for by in 1 + ROUNDING * signs:
        columns = {
            name: values if name in categories else values * factor
            for (name, values), factor in zip(rows.columns.items(), by, strict=True)
        }
        for moved in (model.scores(Table(columns, rows.labels)), model.moved(rows, by)):
            if moved is not None:
                largest = np.maximum(largest, 1.001 * np.abs(moved - original))
    noise[around] = largest
    return noise


if __name__ == "__main__":
    main(*sys.argv[1:])
