"""The key of a conversion covers what its code does, and nothing else."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from converters.code_key import file_code_sha256
from tests.running import ROOT
from tidegate.app.pipelines import step_file

MODULES = ("converters.conversion", "converters.tasks.tensors.task")
CHECKS = Path("converters", "tasks", "tensors", "checks.py")
TEXTS = Path("converters", "tasks", "text", "text_task.py")


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy")
    for package in ("converters", "modelspec"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    return folder


def key(folder: Path) -> str:
    """In a process of its own: each has another order of sets."""
    code = "import sys; from converters.code_key import code_sha256;"
    code += f"print(code_sha256(*{MODULES}), 'torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "PYTHONPATH": os.fspath(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    digest, has_torch = run.stdout.split()
    assert has_torch == "False"
    return digest


def test_only_an_edit_that_changes_the_conversion_changes_its_key(copy):
    checks, texts = ((copy / file).read_text() for file in (CHECKS, TEXTS))
    before = key(copy)
    title, _, rest = checks.partition("\n")
    commented = f'"""Another docstring."""\n\n# A comment.\n{rest}\n# Another one.\n'
    assert title.startswith('"""') and title.endswith('"""')
    (copy / CHECKS).write_text(commented)
    (copy / TEXTS).write_text(f"{texts}\nADDED = 1\n")  # of other tasks
    assert key(copy) == before
    imported = "from typing import Any\n\nimport numpy as np\n"
    assert ") -> list[Check]:" in checks and "import numpy as np\n" in checks
    annotated = checks.replace(") -> list[Check]:", ") -> list[Any]:")
    (copy / CHECKS).write_text(annotated.replace("import numpy as np\n", imported, 1))
    assert key(copy) == before
    (copy / CHECKS).write_text(f"{checks}\nLIMIT = 1\n")
    changed = key(copy)
    (copy / CHECKS).write_text(f"{checks}\nLIMIT = 2\n")
    assert len({before, changed, key(copy)}) == 3


def test_a_step_with_another_comment_does_the_same(tmp_path):
    """``tidegate up`` publishes a pipeline again if one of its steps does something else."""
    source = step_file("tokenize_text")
    text = source.read_text()
    published = tmp_path / "model.py"
    code = text.split('"""', 2)[2]
    published.write_text(f'"""Another docstring."""\n# A comment.{code}')
    assert file_code_sha256(published) == file_code_sha256(source)
    published.write_text(text.replace("TEXT_LIMIT_BYTES = 65_536", "TEXT_LIMIT_BYTES = 65_537"))
    assert file_code_sha256(published) != file_code_sha256(source)
