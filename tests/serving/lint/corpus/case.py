"""One model of the corpus, and the base models that the rest of the corpus varies."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# A file of the repository: its content, or a function that creates it at a path.
File = str | bytes | Callable[[Path], object]

STUB = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([]) for _ in requests]
"""
PYTHON = """
backend: "python"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 3 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 3 ] } ]
instance_group [ { kind: KIND_CPU } ]
"""
ENSEMBLE = """
platform: "ensemble"
max_batch_size: 8
input [ { name: "in" data_type: TYPE_FP32 dims: [ 3 ] } ]
output [ { name: "out" data_type: TYPE_FP32 dims: [ 3 ] } ]
ensemble_scheduling { step [
  { model_name: "part" model_version: -1
    input_map { key: "x" value: "in" } output_map { key: "y" value: "mid" } },
  { model_name: "part" model_version: 1
    input_map { key: "x" value: "mid" } output_map { key: "y" value: "out" } }
] }
"""


@dataclass(frozen=True)
class Case:
    """A model ``name`` with its ``files`` below NAME/ (a path that ends in / is an empty folder);
    ``others`` are whole models beside it. ``loads``: whether Triton 2.51 loads it, and the linter
    must agree; ``hangs``: Triton would never answer, or crash, and so must not load it."""

    name: str
    loads: bool
    files: Mapping[str, File]
    others: Mapping[str, Mapping[str, File]] = field(default_factory=dict)
    hangs: bool = False

    def write(self, repository: Path) -> None:
        for model, files in {self.name: self.files, **self.others}.items():
            for path, content in files.items():
                _write(repository / model / path, path.endswith("/"), content)


def _write(path: Path, is_folder: bool, content: File) -> None:
    if is_folder:
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def edited(text: str, *edits: tuple[str, str], add: str = "") -> str:
    """The text with the first occurrence of each ``old`` replaced, and ``add`` appended."""
    for old, new in edits:
        assert old in text, f"{old!r} is not in {text!r}"
        text = text.replace(old, new, 1)
    return text + add + "\n"


def python(
    name: str, loads: bool, *edits: tuple[str, str], add: str = "", stub: str = STUB, **files: File
) -> Case:
    """A variation of PYTHON."""
    config = edited(PYTHON, *edits, add=add)
    return Case(name, loads, {"config.pbtxt": config, "1/model.py": stub, **files})


def ensemble(
    name: str,
    loads: bool,
    *edits: tuple[str, str],
    add: str = "",
    others: Mapping[str, Mapping[str, File]] | None = None,
) -> Case:
    """A variation of ENSEMBLE: its steps are ``part`` (see ``parts``), or ``others``."""
    config = edited(ENSEMBLE, *edits, add=add)
    return Case(name, loads, {"config.pbtxt": config, "1/": ""}, others or {})


def model(*edits: tuple[str, str], add: str = "", stub: str = STUB) -> Mapping[str, File]:
    """The files of a variation of PYTHON."""
    return {"config.pbtxt": edited(PYTHON, *edits, add=add), "1/model.py": stub}
