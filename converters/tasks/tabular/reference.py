"""What the library that trained a model predicts, row by row, in a separate process.

python -m converters.tasks.tabular.reference MODEL OPTIONS ROWS.npz ANSWERS.npz
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

# The number of rows that are predicted again, from the last to the first.
REPEATED_ROWS = 48


def ask_library(
    model: Path, options: Mapping[str, str], rows: Table, work_dir: Path
) -> dict[str, np.ndarray]:
    """The library's ``answers`` FP64 [n, labels] or [n, 1], predicted one row at a time, and their
    ``answers_noise``.

    A sample of the rows is predicted again, backwards, in a fresh process: SourceRefused if a
    prediction depends on the rows before it.
    """
    predicted = _predict(model, options, rows, work_dir / "rows")
    answers = predicted["answers"]
    count = min(REPEATED_ROWS, len(rows))
    sample = np.unique(np.linspace(0, len(rows) - 1, count).astype(int))[::-1]
    repeated = _predict(model, options, rows.rows(sample), work_dir / "again")["answers"]
    limit = 1e-9 * (1 + np.abs(answers[sample]))
    differs = (np.abs(repeated - answers[sample]) > limit).any(axis=1)
    if differs.any():
        index = int(np.flatnonzero(differs)[0])
        raise SourceRefused(
            f"{model} predicts differently in another order: {rows.labels[sample[index]]} got "
            f"{answers[sample[index]].tolist()} and, predicted again, {repeated[index].tolist()}. "
            "Such a model has no prediction to prove: fix its random_state, or remove its memory "
            "of earlier rows"
        )
    return predicted


def _predict(
    model: Path, options: Mapping[str, str], rows: Table, stem: Path
) -> dict[str, np.ndarray]:
    rows_file, answers_file = stem.with_suffix(".npz"), stem.with_suffix(".answers.npz")
    np.savez(rows_file, **rows.arrays())
    arguments = (model, json.dumps(dict(options)), rows_file)
    return ask("converters.tasks.tabular.reference", *arguments, answers=answers_file)


def main(model: str, options: str, rows_file: str, answers_file: str) -> None:
    from threadpoolctl import threadpool_limits

    warnings.simplefilter("ignore")
    with np.load(rows_file) as stored:
        table = Table.from_arrays(stored)
    library_model, answers = open_model(Path(model), json.loads(options)), []
    with threadpool_limits(1):
        for row in range(len(table)):
            single = table.rows(slice(row, row + 1))
            try:
                answers.append(library_model.answer(single)[0])
            except Exception as error:  # the library can raise anything
                sys.exit(f"it refuses {table.labels[row]}: {' '.join(str(error).split())[:300]}")
    predicted = np.stack(answers)
    np.savez(answers_file, answers=predicted, **noise_of_answers(library_model, table, predicted))


def noise_of_answers(
    model: TabularModel, table: Table, answers: np.ndarray
) -> dict[str, np.ndarray]:
    """The FP32 rounding error of the library's ``answers`` [n, ...] to these rows, if it computes
    in FP32: ``answers_noise``."""

    def exact(positions: list[int]) -> dict[str, np.ndarray]:
        precise = model.exact(table.rows(np.array(positions)))
        return {"answers": answers[positions] if precise is None else precise}

    return fp32_noise({"answers": answers}, exact)


if __name__ == "__main__":
    main(*sys.argv[1:])
