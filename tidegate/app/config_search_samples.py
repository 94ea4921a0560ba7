"""Real inputs for a pipeline, as requests that fit its endpoint schema: the user's own, or the
samples that conversions use."""

import base64
import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.errors import SourceMissing, SourceRefused

SAMPLE_LIMIT = 2000
Body = Mapping[str, Any]
Fields = Mapping[str, Mapping[str, Any]]


def bodies(fields: Fields, samples: Path | None) -> list[Body]:
    """At most ``SAMPLE_LIMIT`` requests for an endpoint schema with these fields.

    Returns [] when there are no samples and none are known for such a schema (the golden sample
    remains). Raises SourceMissing or SourceRefused for an unusable file.
    """
    return _from_path(fields, samples)[:SAMPLE_LIMIT] if samples else _builtin(fields)


def _builtin(fields: Fields) -> list[Body]:
    """The conversions' texts or photos, if the endpoint schema takes exactly one such input."""
    tensors = {name: schema for name, schema in fields.items() if "x-tensor" in schema}
    if len(tensors) != 1:
        return []
    name, schema = next(iter(tensors.items()))
    if schema.get("x-bytes"):
        from converters.tasks.image_classification.samples import few_image_samples

        return [{name: _b64(sample.data)} for sample in few_image_samples()]
    if schema.get("type") == "string" and "enum" not in schema:
        from converters.tasks.text.samples import default_texts

        return [{name: text} for text in default_texts()]
    return []


def _from_path(fields: Fields, path: Path) -> list[Body]:
    if path.is_dir():
        name = _only(fields, path, lambda schema: bool(schema.get("x-bytes")), "bytes")
        files = sorted(file for file in path.iterdir() if file.is_file())
        images: list[Body] = [{name: _b64(file.read_bytes())} for file in files]
        return images or _refuse(path, "is empty")
    if not path.is_file():
        raise SourceMissing(f"there is no file {path}: pass one that holds samples")
    if path.suffix == ".jsonl":
        return _objects(path)
    if path.suffix == ".csv":
        return _rows(fields, path)
    if path.suffix == ".npz":
        return _arrays(fields, path)
    from converters.sample_texts import read_texts

    name = _only(fields, path, lambda schema: schema.get("type") == "string", "text")
    return [{name: text} for text in read_texts(path)]


def _objects(path: Path) -> list[Body]:
    requests: list[Body] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            body = json.loads(line)
        except ValueError as error:
            raise SourceRefused(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(body, dict):
            raise SourceRefused(
                f"{path}, line {number} is not an object: write one request per line"
            )
        requests.append(body)
    return requests or _refuse(path, "is empty")


def _rows(fields: Fields, path: Path) -> list[Body]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if rows and not set(rows[0]) <= set(fields):
        unknown = ", ".join(sorted(set(rows[0]) - set(fields)))
        raise SourceRefused(
            f"{path} has the unknown columns {unknown}; the fields are {', '.join(fields)}"
        )
    try:
        requests: list[Body] = [
            {column: _cell(fields[column], cell or "") for column, cell in row.items()}
            for row in rows
        ]
    except ValueError as error:
        raise SourceRefused(f"{path}: {error}") from error
    return requests or _refuse(path, "has no rows")


def _cell(schema: Mapping[str, object], text: str) -> Any:
    types = schema.get("type", "string")
    if "string" in (types if isinstance(types, list) else [types]):
        return text
    return float(text) if text.strip() else None


def _arrays(fields: Fields, path: Path) -> list[Body]:
    """One request per row of the arrays, which are named after the tensors."""
    import numpy as np

    names = {schema["x-tensor"]: name for name, schema in fields.items() if "x-tensor" in schema}
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    if not arrays or not set(arrays) <= set(names):
        raise SourceRefused(f"{path} has arrays {sorted(arrays)}; the tensors are {sorted(names)}")
    rows = min(len(array) for array in arrays.values())
    return [
        {names[tensor]: array[row].reshape(-1).tolist() for tensor, array in arrays.items()}
        for row in range(rows)
    ]


def _only(fields: Fields, path: Path, fits: Any, what: str) -> str:
    """The name of the one field that ``fits``."""
    names = [name for name, schema in fields.items() if "x-tensor" in schema and fits(schema)]
    if len(names) != 1:
        raise SourceRefused(
            f"{path} holds one {what} per sample, but the pipeline's fields are "
            f"{', '.join(fields)}: pass a .jsonl file with one request per line"
        )
    return names[0]


def _b64(data: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(data).decode()}


def _refuse(path: Path, why: str) -> list[Any]:
    raise SourceRefused(f"{path} {why}: add some samples")
