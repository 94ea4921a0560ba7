"""Assemble the backend directory for Triton: its own backends, and ours where it lacks one."""

import shutil
from pathlib import Path

from serving.installation import Installation

OURS = Path(__file__).parent / "backends"


def assemble(installation: Installation, target: Path) -> Path:
    """Fill ``target`` afresh and return it.

    Triton's native backends are linked and win; ``serving/backends/NAME`` is copied only where
    Triton has no NAME of its own, so one config serves on a laptop and in NVIDIA's container.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for native in installation.backends.iterdir():
        if native.is_dir() and not (native.name == "python" and installation.python_stub):
            (target / native.name).symlink_to(native)
    if installation.python_stub:
        _copy_python_backend(installation.backends, installation.python_stub, target / "python")
    for own in _python_based_backends():
        if not (target / own.name).exists():
            shutil.copytree(own, target / own.name, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def _python_based_backends() -> list[Path]:
    return [folder for folder in OURS.iterdir() if (folder / "model.py").is_file()]


def _copy_python_backend(backends: Path, stub: Path, target: Path) -> None:
    # The stub must lie beside the library, and the wheel is not ours to edit. Copied, not linked:
    # Triton refuses a library that "escapes" the backend directory.
    shutil.copytree(backends / "python", target, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(stub, target / "triton_python_backend_stub")
