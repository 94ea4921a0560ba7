"""What the library that trained a model answers, row by row, in a process of its own.

python -m converters.tabular.oracle MODEL OPTIONS ROWS.npz ANSWERS.npz
"""

import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from converters.errors import SourceRefused
from converters.original import ask, fp32_noise
from converters.sources.tabular_model import TabularModel, open_model
from converters.tabular.table import Table

# So many of the rows are asked again, from the last to the first.
AGAIN = 48


def ask_library(
    model: Path, options: Mapping[str, str], rows: Table, work_dir: Path
) -> dict[str, np.ndarray]:
    """The library's ``answers`` FP64 [n, labels] or [n, 1], asked about one row at a time, and
    their ``answers_noise``.

    A share of the rows is asked again, backwards, in a fresh process: SourceRefused where an answer
    depends on what was asked before it.
    """
    reported = _asked(model, options, rows, work_dir / "rows")
    answers = reported["answers"]
    share = np.unique(np.linspace(0, len(rows) - 1, min(AGAIN, len(rows))).astype(int))[::-1]
    again = _asked(model, options, rows.rows(share), work_dir / "again")["answers"]
    apart = (np.abs(again - answers[share]) > 1e-9 * (1 + np.abs(answers[share]))).any(axis=1)
    if apart.any():
        place = int(np.flatnonzero(apart)[0])
        raise SourceRefused(
            f"{model} gives another answer when it is asked in another order: "
            f"{rows.labels[share[place]]} got {answers[share[place]].tolist()} and, asked anew, "
            f"{again[place].tolist()}. Such a model has no answer to prove: fix its random_state, "
            "or what it remembers of earlier rows"
        )
    return reported


def _asked(
    model: Path, options: Mapping[str, str], rows: Table, stem: Path
) -> dict[str, np.ndarray]:
    questions, answers = stem.with_suffix(".npz"), stem.with_suffix(".answers.npz")
    np.savez(questions, **rows.arrays())
    said = json.dumps(dict(options))
    return ask("converters.tabular.oracle", model, said, questions, answers=answers)


def main(model: str, said: str, questions: str, answers: str) -> None:
    from threadpoolctl import threadpool_limits

    warnings.simplefilter("ignore")
    with np.load(questions) as stored:
        table = Table.from_arrays(stored)
    opened, found = open_model(Path(model), json.loads(said)), []
    with threadpool_limits(1):
        for row in range(len(table)):
            one = table.rows(slice(row, row + 1))
            try:
                found.append(opened.answer(one)[0])
            except Exception as error:  # whatever the library raises of a row
                sys.exit(f"it refuses {table.labels[row]}: {' '.join(str(error).split())[:300]}")
    reported = np.stack(found)
    np.savez(answers, answers=reported, **noise_of_answers(opened, table, reported))


def noise_of_answers(
    model: TabularModel, table: Table, answers: np.ndarray
) -> dict[str, np.ndarray]:
    """What FP32 rounds off of the library's ``answers`` [n, ...] to these rows, where it computes
    in that: ``answers_noise``."""

    def exact(positions: list[int]) -> dict[str, np.ndarray]:
        precise = model.exact(table.rows(np.array(positions)))
        return {"answers": answers[positions] if precise is None else precise}

    return fp32_noise({"answers": answers}, exact)


if __name__ == "__main__":
    main(*sys.argv[1:])
