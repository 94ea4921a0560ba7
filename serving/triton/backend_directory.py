"""Assemble Triton's backend directory: its own backends, and ours where it lacks one."""

import os
import shutil
from pathlib import Path

from serving.triton.installation import Installation

OURS = Path(__file__).parent.parent / "backends"
# Files of one of our backends that another one uses too: each is once in git.
SHARED = {
    "torch_export": [
        OURS / "onnxruntime" / name
        for name in ("ort_graph.py", "ort_jobs.py", "ort_lengths.py", "ort_requests.py")
    ]
}


def assemble(installation: Installation, directory: Path) -> Path:
    """Rebuild ``directory`` and return the backend directory to use.

    Triton's native backends win; ``serving/backends/NAME`` is copied only where Triton has no NAME
    of its own, so one config serves on a laptop and in NVIDIA's container. If Triton has them all,
    its own directory is returned and ``directory`` is not needed.
    """
    missing = [
        backend for backend in _python_based_backends() if not _has(installation, backend.name)
    ]
    if not missing and installation.python_stub is None:
        return installation.backends
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for folder in installation.backends.iterdir():
        if folder.is_dir() and not (folder.name == "python" and installation.python_stub):
            shutil.copytree(folder, directory / folder.name, copy_function=_link)
    if installation.python_stub:
        _copy_python_backend(installation.backends, installation.python_stub, directory / "python")
    for backend in missing:
        shutil.copytree(
            backend, directory / backend.name, ignore=shutil.ignore_patterns("__pycache__")
        )
        for file in SHARED.get(backend.name, ()):
            shutil.copy2(file, directory / backend.name)
    return directory


def _has(installation: Installation, backend: str) -> bool:
    return (installation.backends / backend).is_dir()


def _link(source: str, destination: str) -> None:
    """A hard link where the file system allows it (backends take gigabytes), else a copy. Not a
    symbolic link: Triton refuses a library that "escapes" the backend directory."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)


def _python_based_backends() -> list[Path]:
    return [folder for folder in OURS.iterdir() if (folder / "model.py").is_file()]


def _copy_python_backend(backends: Path, stub: Path, directory: Path) -> None:
    # The stub must be beside the library, and the wheel is not ours to edit.
    shutil.copytree(backends / "python", directory, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(stub, directory / "triton_python_backend_stub")
