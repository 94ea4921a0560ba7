"""`tidegate lint` as a user types it."""

import json
import shutil
import subprocess
import sys

from serving.errors import ModelLoadFailed
from serving.lint.check import lint
from serving.repository.model_repository import ModelRepository
from serving.triton.launch import LaunchOptions, TritonServer
from serving.triton.ports import Ports, free_ports
from tests.running import ROOT, environment
from tests.serving.small_pipeline import step


def _lint(home, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tidegate", "lint", *arguments],
        env=environment(home),
        capture_output=True,
        text=True,
    )


def test_the_committed_repository_has_no_error_built_or_not(tmp_path):
    ignored = shutil.ignore_patterns("[0-9]*")
    shutil.copytree(ROOT / "model_repository", tmp_path / "model_repository", ignore=ignored)
    run = _lint(tmp_path)
    assert run.returncode == 0, run.stdout
    assert "error" not in run.stdout
    assert "not built yet" in run.stdout


def test_a_built_repository_is_clean(built):
    run = _lint(built, "--cores", "2")
    assert run.returncode == 0
    assert run.stdout == "no findings\n"


def test_an_error_names_the_fix_and_exits_1(tmp_path):
    (tmp_path / "mine" / "m" / "1").mkdir(parents=True)
    (tmp_path / "mine" / "m" / "config.pbtxt").write_text('backend: "onnxruntime"')
    run = _lint(tmp_path, str(tmp_path / "mine"))
    assert run.returncode == 1
    assert "m/1: backend onnxruntime looks for model.onnx, but there is nothing" in run.stdout
    assert "put model.onnx there" in run.stdout
    findings = json.loads(_lint(tmp_path, str(tmp_path / "mine"), "--json").stdout)
    assert findings[0]["code"] == "file-missing"


def test_the_server_version_must_be_valid(tmp_path):
    (tmp_path / "mine" / "m" / "1").mkdir(parents=True)
    (tmp_path / "mine" / "m" / "1" / "model.py").touch()
    config = tmp_path / "mine" / "m" / "config.pbtxt"
    config.write_text('backend: "python" model_metrics { }')
    run = _lint(tmp_path, str(tmp_path / "mine"))
    assert run.returncode == 1
    assert "[field-newer]" in run.stdout
    assert _lint(tmp_path, str(tmp_path / "mine"), "--triton", "2.52.0").returncode == 0
    run = _lint(tmp_path, "--triton", "25.11")
    assert run.returncode == 2
    assert "such as 2.51" in run.stderr


def test_a_missing_folder(tmp_path):
    run = _lint(tmp_path, str(tmp_path / "nowhere"))
    assert run.returncode == 1
    assert "there is no folder" in run.stderr


X, Y = (f'data_type: TYPE_FP32 name: "{name}"' for name in "xy")
MODEL = f'backend: "python" max_batch_size: 4 input {{ {X} dims: 1 }} output {{ {Y} dims: 1 }} '
STEP = (
    'step { model_name: "good" model_version: 1 '
    'input_map { key: "x" value: "x" } output_map { key: "y" value: "y" } }'
)
WHOLE = MODEL.replace('backend: "python"', 'platform: "ensemble"')
WHOLE += f"ensemble_scheduling {{ {STEP} }}"
SPARE = STEP.replace('value: "y"', 'value: "spare"')
# Models that Triton 2.51 loads or refuses: name -> (config, whether it loads).
TRITON = {
    "good": (MODEL, True),
    "dims_empty": (MODEL.replace(f"{X} dims: 1", X), False),
    "dims_bad": (MODEL.replace(f"{X} dims: 1", f"{X} dims: 0"), False),
    "type_missing": (MODEL.replace("data_type: TYPE_FP32", "", 1), False),
    "reshape": (MODEL.replace(f"{X} dims: 1", f"{X} dims: 2 reshape {{ shape: 3 }}"), False),
    "labels": (MODEL.replace(f"{Y} dims: 1", f'{Y} dims: 1 label_filename: "l.txt"'), False),
    "preferred": (f"{MODEL} dynamic_batching {{ preferred_batch_size: 8 }}", False),
    "no_batch": (MODEL.replace("size: 4", "size: 0") + "dynamic_batching { }", True),
    "twice": (MODEL + f"input {{ {X} dims: 1 }}", True),
    "whole": (WHOLE, True),
    "input_unused": (f'{WHOLE} input {{ data_type: TYPE_FP32 name: "z" dims: 1 }}', False),
    "tensor_unused": (WHOLE.replace(STEP, STEP + SPARE), False),
    "made_twice": (WHOLE.replace(STEP, STEP + STEP), False),
    "batch_large": (WHOLE.replace("size: 4", "size: 8"), False),
    "instances": (f"{WHOLE} instance_group {{ count: 2 }}", False),
    "no_platform": (WHOLE.replace('platform: "ensemble"', 'backend: "python"'), False),
    "pin_missing": (WHOLE.replace("version: 1", "version: 3"), False),
    "wire_type": (WHOLE.replace(X, X.replace("FP32", "INT32")), False),
    "wire_shape": (WHOLE.replace(f"{X} dims: 1", f"{X} dims: [ 1, 1 ]"), False),
    "map_unknown": (WHOLE.replace('key: "x"', 'key: "q"'), False),
    "unmade": (WHOLE.replace('key: "x" value: "x"', 'key: "x" value: "w"'), False),
    "name_differs": (f'{MODEL} name: "other"', False),
}


def test_an_error_is_what_triton_refuses_and_nothing_else(tmp_path):
    """The linter and a real Triton judge the same models."""
    repository = tmp_path / "models"
    for name, (config, _) in TRITON.items():
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(config)
        if "ensemble_scheduling" not in config:
            (repository / name / "1" / "model.py").write_text(step(("x", "y"), 0))
    findings = lint(ModelRepository(repository), cores=2)
    faulty = {
        finding.location.partition("/")[0] for finding in findings if finding.severity == "error"
    }
    with TritonServer(
        LaunchOptions(ModelRepository(repository), tmp_path, Ports(*free_ports(3)))
    ) as server:
        refused = {name for name in TRITON if not _loads(server, name)}
        server.stop(gently=False)
    assert refused == {name for name, (_, loads) in TRITON.items() if not loads}
    assert faulty == refused


def _loads(server: TritonServer, model: str) -> bool:
    try:
        server.control.load(model)
    except ModelLoadFailed:
        return False
    return True
