"""Tables: named columns of numbers (FP64, NaN where a value is missing) and texts."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.errors import SourceMissing, SourceRefused
from converters.sample_texts import SAMPLE_LIMIT

CSV_LIMIT_BYTES = 256 * 1024 * 1024
# A missing text on the wire and in a Table: a code point that Unicode permanently excludes from
# text.
MISSING = "\ufdd0"


@dataclass(frozen=True)
class Column:
    """A column that a model takes. ``categories`` are the texts that it knows; ``open``: it accepts
    others too. ``nullable``: it accepts a missing value (NaN, or the text ``MISSING``);
    ``none``: a missing value was None in training, not NaN (None: the model does not say).
    ``centre`` and ``spread`` describe the numbers that the model was trained on, as far as the
    model itself says. ``words`` are the words that a vectorizer knows."""

    name: str
    is_text: bool = False
    categories: tuple[str, ...] = ()
    open: bool = True
    nullable: bool = False
    none: bool | None = None
    words: tuple[str, ...] = ()
    centre: float | None = None
    spread: float | None = None
    values: tuple[float, ...] = ()  # the numbers that an encoder knows, if any
    are_objects: bool = False  # training had its numbers as Python objects, maybe with None

    def metadata(self) -> dict[str, Any]:
        """The fields that the pipeline's declaration holds."""
        fields = ("name", "is_text", "categories", "open", "nullable", "values")
        return {key: value for key, value in asdict(self).items() if key in fields}


@dataclass(frozen=True)
class Table:
    """Rows of a table: for each column FP64 [n] or text [n]. ``labels`` say where each row comes
    from."""

    columns: Mapping[str, np.ndarray]
    labels: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, selection: Any) -> "Table":
        """The rows that a slice or an index array selects."""
        columns = {name: values[selection] for name, values in self.columns.items()}
        return Table(columns, list(np.array(self.labels, dtype=np.str_)[selection]))

    def join(self, other: "Table") -> "Table":
        """These rows followed by the other's."""
        columns = {
            name: np.concatenate([values, other.columns[name]])
            for name, values in self.columns.items()
        }
        return Table(columns, [*self.labels, *other.labels])

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of an ``.npz``; columns are numbered, because any text may be a column's
        name."""
        numbered = {f"column{i}": values for i, values in enumerate(self.columns.values())}
        names = np.array(list(self.columns), dtype=np.str_)
        return {**numbered, "names": names, "rows": np.array(self.labels, dtype=np.str_)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Table":
        """The inverse of ``arrays``."""
        names = [str(name) for name in arrays["names"]]
        columns = {name: arrays[f"column{i}"] for i, name in enumerate(names)}
        return cls(columns, [str(row) for row in arrays["rows"]])


def ordinary_row(columns: Sequence[Column]) -> Table:
    """A table with one ordinary row."""
    values: dict[str, np.ndarray] = {}
    for column in columns:
        if column.is_text:
            values[column.name] = np.array([column.categories[0] if column.categories else "a"])
        else:
            number = column.values[0] if column.values else column.centre or 0.0
            values[column.name] = np.array([number], dtype=np.float64)
    return Table(values, ["one row"])


def read_csv(path: Path, columns: Sequence[Column]) -> Table:
    """The first ``SAMPLE_LIMIT`` rows of a CSV file whose header names exactly these columns.

    SourceMissing or SourceRefused names the column, and the line if there is one.
    """
    if not path.is_file():
        raise SourceMissing(f"there is no file {path}: give a CSV file with a header")
    if path.stat().st_size > CSV_LIMIT_BYTES:
        raise SourceRefused(f"{path} is over {CSV_LIMIT_BYTES} bytes: give a few hundred rows")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file)
            header = next(lines, [])
            body = [(lines.line_num, row) for row in lines if row][:SAMPLE_LIMIT]
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceRefused(f"{path} is not a CSV file in UTF-8 ({error})") from error
    _check_header(path, [name.strip() for name in header], columns)
    if not body:
        raise SourceRefused(f"{path} has a header but no row: add some samples")
    return _table(path, [name.strip() for name in header], body, columns)


def _check_header(path: Path, header: Sequence[str], columns: Sequence[Column]) -> None:
    expected = [column.name for column in columns]
    missing = [name for name in expected if name not in header]
    extra = [name for name in header if name not in expected]
    if len(missing) == len(expected):
        raise SourceRefused(
            f"{path} has no header: its first line must name the columns ({_some(expected)})"
        )
    if missing:
        raise SourceRefused(f"{path} lacks the column {_some(missing)}: add it")
    if extra:
        raise SourceRefused(
            f"{path} has the column {_some(extra)}, which the model does not take: remove it"
        )
    if len(set(header)) < len(header):
        raise SourceRefused(f"{path} names a column twice: name each once")


def _table(
    path: Path, header: Sequence[str], lines: list[tuple[int, list[str]]], columns: Sequence[Column]
) -> Table:
    for line, row in lines:
        if len(row) != len(header):
            raise SourceRefused(
                f"{path} line {line}: {len(row)} values, but the header names {len(header)} columns"
            )
    positions = {name: index for index, name in enumerate(header)}
    values_by_name = {}
    for column in columns:
        texts = [(line, row[positions[column.name]]) for line, row in lines]
        values_by_name[column.name] = (
            np.array([_text(column, text) for _, text in texts], dtype=np.str_)
            if column.is_text
            else np.array([_number(path, column, line, text) for line, text in texts])
        )
    return Table(values_by_name, [f"line {line} of {path.name}" for line, _ in lines])


def _text(column: Column, text: str) -> str:
    """An empty field is a missing value, as in pandas, unless "" is a category."""
    return MISSING if not text and column.nullable and "" not in column.categories else text


def _number(path: Path, column: Column, line: int, text: str) -> float:
    where = f"{path} line {line}: {column.name!r} is"
    try:
        number = float(text.strip() or "nan")
    except ValueError:
        raise SourceRefused(f"{where} {text[:40]!r}, and the model takes a number there") from None
    if math.isinf(number) or (math.isnan(number) and not column.nullable):
        raise SourceRefused(f"{where} {text or 'empty'}, which the model does not accept there")
    return number


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(repr(name) for name in names[:5]) + more
