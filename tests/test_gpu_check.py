"""``deploy/gpu_check.py``: the path that a GPU box runs, on the CPU; and what it says without."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "deploy" / "gpu_check.py"


def _run(repository, report, *arguments, python=(sys.executable,)):
    from tests.running import environment

    return subprocess.run(
        [*python, str(SCRIPT), "--json", str(report), *arguments],
        env={**environment(report.parent), "TIDEGATE_REPOSITORY": str(repository)},
        cwd=report.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_it_serves_compares_and_measures_and_says_on_what(stack, tmp_path):
    repository, report = stack.home / "model_repository", tmp_path / "out.json"
    limits = ("--models", "text_embedding", "--batches", "2", "--seconds", "0.2")
    run = _run(repository, report, "--cpu", *limits)
    assert run.returncode == 0, run.stderr
    measured = json.loads(report.read_text())
    assert measured["passed"] and measured["error"] == ""
    assert measured["cpu_only"] and measured["runs_on"] == "onnxruntime on the CPU"
    assert (
        measured["versions"]["tritonserver"].count(".") == 2 and measured["hardware"]["cores"] >= 1
    )
    assert [check["served_as"] for check in measured["engines"]] == [
        "text_embedding_fp32",
        "text_embedding_fp16",
    ]
    fp32, fp16 = (check["parity"] for check in measured["engines"])
    assert fp32["difference"] <= 1e-5 < fp16["difference"] <= 1e-3
    for check in measured["engines"]:
        (figures,) = check["rows_per_s"]
        assert figures["batch"] == 2 and figures["share"] > 0
        # Not how many: a busy machine may answer none but the first within 0.2 s.
        assert all(figures[rate] > 0 for rate in ("grpc", "in_process", "bound"))
    versions = measured["versions"]
    assert versions["onnxruntime_build"].startswith(versions["onnxruntime"])
    assert "operators on CPUExecutionProvider" in report.with_suffix(".triton.log").read_text()
    if shutil.which("nvidia-smi") is None:
        assert measured["tensorrt"]["missing"].startswith("no NVIDIA GPU")


def test_what_was_measured_before_a_failure_is_kept(stack, tmp_path):
    """A model that does not load, after the first was measured."""
    repository, report = tmp_path / "repository", tmp_path / "out.json"
    for name in ("text_embedding", "image_classification"):
        engine = stack.home / "model_repository" / f"{name}_onnx"
        shutil.copytree(engine, repository / f"{name}_onnx")
    config = repository / "image_classification_onnx" / "config.pbtxt"
    config.write_text(config.read_text().replace('"pixels"', '"pixel"'))
    limits = ("--precisions", "fp32", "--batches", "1", "--seconds", "0.1")
    run = _run(repository, report, "--cpu", *limits)
    assert run.returncode == 1
    measured = json.loads(report.read_text())
    assert not measured["passed"]
    assert "image_classification_fp32 failed to load" in measured["error"]
    first, second = measured["engines"]
    assert first["parity"]["passed"] and first["rows_per_s"][0]["grpc"] > 0
    assert second["served_as"] == "image_classification_fp32" and "parity" not in second


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU here")
def test_without_a_gpu_it_says_so_in_one_line(tmp_path):
    report = tmp_path / "out.json"
    run = _run(tmp_path, report)
    assert run.returncode == 2 and not report.exists()
    assert run.stderr.count("\n") == 1 and "no NVIDIA GPU here" in run.stderr


def test_on_a_bare_python_it_says_how_to_install(tmp_path):
    """-I -S: only the standard library, as on a box where nothing is installed."""
    report = tmp_path / "out.json"
    run = _run(tmp_path, report, "--cpu", python=(sys.executable, "-I", "-S"))
    assert run.returncode == 1, run.stderr
    assert "run with --install" in json.loads(report.read_text())["error"]
