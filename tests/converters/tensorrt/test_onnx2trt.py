"""``onnx2trt``: what it configures in TensorRT, which files it writes, and its messages.

TensorRT itself is a fake here (see fake_trt.py), the GPU a program called nvidia-smi; in the tests
of what is missing, it really is missing.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import onnx
import pytest

from converters.tensorrt import available, onnx2trt, stamp
from tests.converters.tensorrt.trt_machine import (
    GPU,
    ROOT,
    child_environment,
    machine,
    plant_gpu,
    write_graph,
)

__all__ = ["machine"]
WRITTEN = ["model.onnx", "model.plan", "model.plan.json", "reproduce.sh"]


@pytest.fixture
def graph(tmp_path):
    return write_graph(tmp_path / "graph.onnx")


def _build(graph, output, *more):
    return onnx2trt.main(
        [str(graph), "--output", str(output), "--max-batch=4", "--lengths=8,16", *more]
    )


def _run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def _names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# ------------------------------------------------------------------------------- without a GPU


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU here")
def test_without_a_gpu_it_says_so_in_one_line_and_how_to_get_one(graph, tmp_path):
    by_name = [sys.executable, "-m", "converters.tensorrt.onnx2trt"]
    by_path = [sys.executable, str(ROOT / "converters" / "tensorrt" / "onnx2trt.py")]
    for command, folder in ((by_name, ROOT), (by_path, tmp_path)):
        arguments = [str(graph), "--output", str(tmp_path / "e"), "--max-batch=4", "--lengths=16"]
        run = _run(*command, *arguments, cwd=folder)
        assert run.returncode == onnx2trt.UNAVAILABLE, run.stderr
        assert run.stderr.count("\n") == 1
        assert run.stderr.startswith("onnx2trt: no NVIDIA GPU: nvidia-smi not found; run this on")
        assert not (tmp_path / "e").exists()


def test_without_the_package_it_says_that_and_how_to_get_it(graph, tmp_path, monkeypatch, capsys):
    """The folder of the type stubs, which Python imports as an empty namespace, does not count."""
    monkeypatch.setenv("PATH", str(plant_gpu(tmp_path / "bin")) + ":" + os.environ["PATH"])
    assert "tensorrt" not in sys.modules
    assert _build(graph, tmp_path / "engine") == onnx2trt.UNAVAILABLE
    message = capsys.readouterr().err
    assert (
        message.count("\n") == 1 and "the package tensorrt is not installed: pip install" in message
    )
    assert _names(tmp_path / "engine") == []


def test_a_package_whose_libraries_are_missing_says_that(tmp_path, monkeypatch):
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: cannot open')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(available.EngineUnavailable, match=r"cannot be loaded \(libnvinfer\.so\.11"):
        available.require_package()


@pytest.mark.parametrize(("row", "code"), [("No devices were found", 6), ("", 0), ("a, b", 0)])
def test_a_driver_that_reports_no_gpu_counts_as_none(tmp_path, monkeypatch, row, code):
    monkeypatch.setenv("PATH", f"{plant_gpu(tmp_path / 'bin', row, code)}:{os.environ['PATH']}")
    with pytest.raises(available.EngineUnavailable, match="no NVIDIA GPU: nvidia-smi says"):
        available.find_gpu()


def test_the_gpu_is_the_one_that_cuda_sees(machine, tmp_path, monkeypatch):
    assert available.find_gpu() == available.Gpu(*GPU)
    assert available.missing() == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-7f3c,2")
    available.find_gpu()
    asked = (tmp_path / "bin" / "nvidia-smi.asked").read_text().splitlines()
    assert [line.rpartition("=")[2] for line in asked] == ["0", "0", "GPU-7f3c"]


# ------------------------------------------------------------------------------------ a build


def test_it_passes_profiles_limit_and_precision_to_tensorrt(machine, graph, tmp_path):
    assert _build(graph, tmp_path / "engine", "--workspace-mib=512") == onnx2trt.BUILT
    config = machine.seen["config"]
    assert [p.shapes["ids"] for p in config.profiles] == [
        ((1, 1), (4, 8), (4, 8)),
        ((1, 9), (4, 16), (4, 16)),
    ]
    assert list(config.limits.values()) == [512 << 20]
    assert config.cleared == [machine.BuilderFlag.TF32]


def test_it_writes_the_plan_its_stamp_the_graph_and_the_command(machine, graph, tmp_path):
    folder = tmp_path / "engine"
    assert _build(graph, folder) == onnx2trt.BUILT
    assert _names(folder) == WRITTEN
    assert (folder / "model.onnx").read_bytes() == graph.read_bytes()
    built = stamp.read(folder)
    assert (built.gpu, built.compute_capability, built.driver) == GPU
    assert built.tensorrt == machine.VERSION
    assert built.onnx_sha256 == hashlib.sha256(graph.read_bytes()).hexdigest()


def test_it_builds_again_only_when_the_stamp_does_not_match(machine, graph, tmp_path, capsys):
    folder = tmp_path / "engine"
    _build(graph, folder)
    machine.seen.clear()
    assert _build(folder / "model.onnx", folder) == onnx2trt.BUILT
    assert (
        "is already there, built for this machine" in capsys.readouterr().err and not machine.seen
    )
    plant_gpu(tmp_path / "bin", "NVIDIA L4, 8.9, 580.65.06")
    assert _build(folder / "model.onnx", folder) == onnx2trt.BUILT
    assert "compute_capability 9.0, here 8.9" in capsys.readouterr().err and machine.seen
    assert stamp.read(folder).gpu == "NVIDIA L4"


def test_timings_are_cached_beside_the_conversions_and_reused(machine, graph, tmp_path):
    _build(graph, tmp_path / "first")
    (timings,) = (tmp_path / "cache" / "tidegate" / "timings").iterdir()
    assert timings.name == f"trt-{machine.VERSION}-sm9.0.timings"
    assert json.loads(timings.read_text()) == ["measured"]
    _build(graph, tmp_path / "second")
    assert machine.seen["config"].timings == ["measured"] * 2
    timings.write_bytes(b"of another GPU")
    assert _build(graph, tmp_path / "third") == onnx2trt.BUILT
    assert json.loads(timings.read_text()) == ["measured"]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"parse": ["no importer for Foo", "and none for Bar"]}, "for Foo; and none for Bar"),
        ({"build": "out of memory"}, "built no engine of .*: out of memory"),
        ({"profile": -1}, "refuses the profile"),
    ],
)
def test_a_failed_build_says_why_and_keeps_the_old_engine(
    machine, graph, tmp_path, capsys, fault, expected
):
    folder = tmp_path / "engine"
    _build(graph, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    plant_gpu(tmp_path / "bin", "NVIDIA L4, 8.9, 580.65.06")
    machine.faults.update(fault)
    capsys.readouterr()
    assert _build(graph, folder) == onnx2trt.FAILED
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(expected, last), last
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--max-batch=0", "--lengths=16"], "batches of 1 or more"),
        (["--max-batch=4"], "ids may be of any length: say which"),
        (["--max-batch=4", "--lengths=32,16"], "must be positive and ascend"),
    ],
)
def test_invalid_options_are_refused_before_anything_else(
    graph, tmp_path, capsys, arguments, expected
):
    folder = tmp_path / "engine"
    assert onnx2trt.main([str(graph), f"--output={folder}", *arguments]) == onnx2trt.FAILED
    assert expected in capsys.readouterr().err and not folder.exists()


def test_a_missing_file_or_one_that_is_not_onnx_is_refused(tmp_path, capsys):
    assert _build(tmp_path / "nowhere.onnx", tmp_path / "e") == onnx2trt.FAILED
    (tmp_path / "text.onnx").write_text("not a graph")
    assert _build(tmp_path / "text.onnx", tmp_path / "e") == onnx2trt.FAILED
    messages = capsys.readouterr().err
    assert "there is no file" in messages and "is not an ONNX file" in messages


def test_a_graph_with_external_weights_is_refused(graph, tmp_path, capsys):
    model = onnx.load(graph)
    constant = model.graph.initializer[0]
    constant.data_location = onnx.TensorProto.EXTERNAL
    constant.external_data.add(key="location", value="weights.bin")
    constant.ClearField("int64_data")
    graph.write_bytes(model.SerializeToString())
    assert _build(graph, tmp_path / "e") == onnx2trt.FAILED
    assert "stores 'two' in another file: save the model as a single" in capsys.readouterr().err


def test_help_has_an_example():
    run = _run(sys.executable, "-m", "converters.tensorrt.onnx2trt", "--help", cwd=ROOT)
    assert (
        run.returncode == 0
        and "example: python -m converters.tensorrt.onnx2trt model.onnx" in run.stdout
    )


# ------------------------------------------------------------------------------------ its process


# 40 s, unless it is interrupted.
SLOW = """
import sys
from tests.converters.tensorrt import fake_trt
from converters.tensorrt.onnx2trt import main
fake_trt.faults["slow"] = (400, 0.1)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_build_and_nothing_is_written(graph, tmp_path, number):
    engine = tmp_path / "engine"
    command = [sys.executable, "-c", SLOW, str(graph), f"--output={engine}", "--max-batch=4"]
    process = subprocess.Popen(
        [*command, "--lengths=8"],
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(tmp_path),
        cwd=ROOT,
    )
    timer = threading.Timer(30, process.kill)
    timer.start()
    with process:  # waits for it, and closes the pipe
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "  0% Building Engine" in line:
                process.send_signal(number)
    timer.cancel()
    assert process.returncode == onnx2trt.STOPPED, lines
    assert lines[-1] == "onnx2trt: interrupted, nothing was written\n"
    assert not any("100%" in line for line in lines) and not engine.exists()


def test_reproduce_builds_the_same_from_any_folder_with_any_names(graph, tmp_path):
    """A folder name that a shell would split, moved after the build, called from elsewhere."""
    environment = child_environment(tmp_path)
    folder = tmp_path / 'it\'s $HOME; a "folder" -n'
    cache = tmp_path / "timings $(touch gone)"
    command = [
        sys.executable,
        "-m",
        "converters.tensorrt.onnx2trt",
        str(graph),
        "--output",
        str(folder),
    ]
    options = ["--max-batch=4", "--lengths=8,16", "--usual-batch=2", f"--timing-cache={cache}"]
    built = _run(*command, *options, env=environment, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    moved = tmp_path / "-moved"
    folder.rename(moved)
    graph.unlink()
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "converters").mkdir(parents=True)
    run = _run("sh", str(moved / "reproduce.sh"), env=environment, cwd=elsewhere)
    assert run.returncode == 0, run.stderr
    again = elsewhere / "rebuilt-engine"
    assert _names(again) == WRITTEN
    assert stamp.read(again) == stamp.read(moved)
    assert (again / "reproduce.sh").read_text() == (moved / "reproduce.sh").read_text()
    assert _names(elsewhere) == ["converters", "rebuilt-engine"]
    assert not list(Path(tmp_path).rglob("gone"))
