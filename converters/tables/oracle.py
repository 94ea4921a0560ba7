"""What the library that trained a model answers, row by row, in a process of its own.

python -m converters.tables.oracle MODEL OPTIONS ROWS.npz ANSWERS.npz
"""

import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from converters.original import ask
from converters.sources.tabular_model import open_model
from converters.tables.table import Table


def ask_library(model: Path, options: Mapping[str, str], rows: Table, work_dir: Path) -> np.ndarray:
    """The library's answers FP64 [n, labels] or [n, 1], asked about one row at a time."""
    questions = work_dir / "rows.npz"
    np.savez(questions, **rows.arrays())
    answers = work_dir / "library.npz"
    said = json.dumps(dict(options))
    return ask("converters.tables.oracle", model, said, questions, answers=answers)["answers"]


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
            except ValueError as error:
                sys.exit(f"it refuses {table.labels[row]}: {' '.join(str(error).split())[:300]}")
    np.savez(answers, answers=np.stack(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
