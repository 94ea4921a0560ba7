"""The corpus's models for Triton, with a backend that needs no process of its own."""

import shutil
import subprocess
from pathlib import Path

from tests.serving.lint.corpus.case import STUB

SOURCE = Path(__file__).with_suffix(".c")
PYTHON = b'backend: "python"'
# What only Triton's Python backend checks.
PYTHON_BACKEND_FIELDS = (
    b"runtime",
    b"EXECUTION_ENV_PATH",
    b"FORCE_CPU_ONLY_INPUT_TENSORS",
    b'filename: "m',
)


def use_quick_backend(repository: Path) -> None:
    """Give the models whose stub does nothing a backend that does nothing either.

    Triton's core judges a config independently of the backend, and a Python model takes half a
    second to load. Without a C compiler the models are left unchanged.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        return
    library = repository.parent / "libtriton_quick.so"
    subprocess.run([compiler, "-shared", "-fPIC", str(SOURCE), "-o", str(library)], check=True)
    for model in repository.iterdir():
        config = model / "config.pbtxt"
        if config.is_file() and not config.is_symlink() and _does_nothing(model):
            content = config.read_bytes()
            if PYTHON in content and not any(field in content for field in PYTHON_BACKEND_FIELDS):
                config.write_bytes(content.replace(PYTHON, b'backend: "quick"'))
                shutil.copy(library, model)


def _does_nothing(model: Path) -> bool:
    stubs = list(model.glob("*/model.py"))
    return bool(stubs) and all(stub.is_file() and stub.read_text() == STUB for stub in stubs)
