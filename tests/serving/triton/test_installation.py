"""Finding Triton: PATH first, then the wheel; the error names what is missing and how to get it."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import sysconfig

import pytest

from serving.errors import TritonMissing
from serving.triton import leftovers
from serving.triton.backend_directory import assemble
from serving.triton.installation import cuda_libraries, find_triton


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
    assert {path.name for path in (assembled / "torch_export").iterdir()} == {
        "model.py",
        *("pt2_program.py", "pt2_stamp.py"),
        *("ort_graph.py", "ort_jobs.py", "ort_lengths.py", "ort_requests.py"),
    }
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
    native = assembled / "onnxruntime"
    assert [file.name for file in native.iterdir()] == ["libtriton_onnxruntime.so"]
    assert (assembled / "openvino_genai" / "model.py").is_file()  # which NVIDIA's servers lack


def test_a_server_with_every_backend_needs_no_directory_of_ours(tmp_path):
    path = _container(
        tmp_path / "triton", "python", "onnxruntime", "openvino_genai", "torch_export"
    )
    installation = find_triton(search_path=path)
    assert assemble(installation, tmp_path / "backends") == installation.backends


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


def test_numpy_2_is_refused_because_stubs_would_answer_with_empty_tensors(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "2.4.1")
    with pytest.raises(TritonMissing, match=r"numpy 2.4.1 is installed.*pip install 'numpy<2'"):
        find_triton(search_path="/nonexistent")


def test_a_static_libpython_does_not_count(tmp_path, monkeypatch):
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    static = f"libpython{version}.a"
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / static).touch()
    settings = {"LIBDIR": str(tmp_path / "lib"), "INSTSONAME": static}
    monkeypatch.setattr(sysconfig, "get_config_var", settings.get)
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    with pytest.raises(TritonMissing, match=rf"libpython{version}.so.1.0 is not installed"):
        find_triton(search_path="/nonexistent")


def test_the_folders_of_cudas_packages_are_found_on_pythons_path(tmp_path, monkeypatch):
    for folder in ("nvidia/cudnn/lib", "nvidia/cu13/lib", "nvidia/cudnn/include", "torch/lib"):
        (tmp_path / "site" / folder).mkdir(parents=True)
    expected = [tmp_path / "site" / "nvidia" / name / "lib" for name in ("cu13", "cudnn")]
    assert cuda_libraries([str(tmp_path), str(tmp_path / "site")]) == expected
    monkeypatch.syspath_prepend(tmp_path / "site")
    environment = find_triton(search_path="/nonexistent").environment
    folders = environment["LD_LIBRARY_PATH"].split(os.pathsep)
    assert [str(folder) for folder in expected] == folders[2:4]
    assert "PYTHONPATH" not in environment


def test_regions_of_dead_owners_are_removed_and_those_of_live_ones_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(leftovers, "FOLDER", tmp_path)
    dead = subprocess.Popen(["true"])
    dead.wait()
    build = tmp_path / "build"
    (build / f"tidegate_{dead.pid}_aa_backends" / "python").mkdir(parents=True)
    (tmp_path / f"tidegate_{dead.pid}_aa_1").touch()
    (tmp_path / f"{leftovers.new_prefix()}1").touch()
    # Of a killed container that had our pid, and of a living one whose pid nobody has here.
    for prefix in (f"tidegate_{os.getpid()}_bb_", f"tidegate_{dead.pid}_cc_"):
        held = leftovers.hold(prefix, build)
        (tmp_path / f"{prefix}1").touch()
        (build / f"{prefix}backends").mkdir()
        if "_bb_" in prefix:
            while held:
                held.pop().close()
    (tmp_path / "triton_python_backend_shm_region_1").touch()
    leftovers.remove_orphans(build)
    elsewhere = f"tidegate_{dead.pid}_cc_"
    assert {path.name for path in build.iterdir()} == {f"{elsewhere}backends", f"{elsewhere}owner"}
    remaining = {path.name for path in tmp_path.iterdir()}
    (own,) = (name for name in remaining if name.startswith(f"tidegate_{os.getpid()}_"))
    assert remaining == {
        "build", own, f"{elsewhere}1", f"{elsewhere}owner", "triton_python_backend_shm_region_1"
    }  # fmt: skip
    for file in held:
        file.close()
    leftovers.remove_orphans(build)
    assert not list(build.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {
        "build", own, "triton_python_backend_shm_region_1"
    }  # fmt: skip
