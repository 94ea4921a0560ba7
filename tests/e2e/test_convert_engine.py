"""``tidegate convert --engine tensorrt``: where it cannot work, and the whole path where it can.

For the whole path this machine gets stand-ins for what it lacks: nvidia-smi, the tensorrt package
(see tests/converters/tensorrt/fake_trt.py) and Triton's tensorrt backend, which here is a
Python-based one. Conversion, proofs, Triton, its choice of ``configs/tensorrt.pbtxt`` and the
publication are real.
"""

import shutil
from dataclasses import replace

import pytest
from tritonclient.grpc import model_config_pb2 as pb

from converters.errors import ProofFailed
from ensembles.text_embedding import PIPELINE
from modelspec.hardware import plan_config
from modelspec.pbtxt import parse
from serving.repository.model_repository import ModelRepository
from serving.triton import installation
from tests.command_line import tidegate
from tests.converters.tasks.test_tensors import linear
from tests.converters.tensorrt import fake_trt
from tests.converters.tensorrt.trt_machine import child_environment, machine, plant_gpu
from tidegate.app.convert import ConvertOptions, run
from tidegate.app.engines import is_on, on_engine, why_not_here
from tidegate.app.paths import Paths
from tidegate.app.pipelines import Built
from tidegate.app.prove import ProveOptions, prove

__all__ = ["machine"]
BACKEND = '''
import json
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """The stand-in's plan: profiles, a zero byte, the ONNX graph."""

    def initialize(self, args):
        config = json.loads(args["model_config"])
        folder = f"{args['model_repository']}/{args['model_version']}"
        with open(f"{folder}/{config['default_model_filename']}", "rb") as file:
            head, _, graph = file.read().partition(b"\\0")
        numbers = [str(n) for n in range(len(json.loads(head)))]
        assert config["instance_group"][0]["profile"] == numbers
        self.session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self.names = [tensor["name"] for tensor in config["input"]]

    def execute(self, requests):
        return [self.infer(request) for request in requests]

    def infer(self, request):
        feed = {n: pb_utils.get_input_tensor_by_name(request, n).as_numpy() for n in self.names}
        outputs = zip(self.session.get_outputs(), self.session.run(None, feed))
        return pb_utils.InferenceResponse([pb_utils.Tensor(o.name, a) for o, a in outputs])
'''


@pytest.fixture
def source(tmp_path):
    linear(tmp_path / "chances.onnx")
    return tmp_path / "chances.onnx"


@pytest.fixture
def paths(tmp_path, monkeypatch):
    monkeypatch.delenv("TIDEGATE_REPOSITORY", raising=False)
    (tmp_path / "home").mkdir()
    return Paths(tmp_path / "home")


@pytest.fixture
def gpu_box(machine, tmp_path, monkeypatch):
    """Make this process and its children see a GPU, TensorRT and a Triton with its backend."""
    import converters.tensorrt.runner

    for name, value in child_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(converters.tensorrt.runner, "Device", fake_trt.HostDevice)
    real = installation.find_triton()
    backends = tmp_path / "backends"
    shutil.copytree(real.backends, backends)
    (backends / "tensorrt").mkdir()
    (backends / "tensorrt" / "model.py").write_text(BACKEND)
    box = replace(real, backends=backends)
    monkeypatch.setattr("modelspec.staging.plan_config", _plan_config_on_the_cpu)
    monkeypatch.setattr("serving.triton.launch.find_triton", lambda: box)
    monkeypatch.setattr("tidegate.app.engines.find_triton", lambda: box)
    return backends


def _plan_config_on_the_cpu(spec):
    """Triton counts the GPUs itself, and refuses KIND_GPU without one."""
    config = plan_config(spec)
    assert config.instance_group[0].kind == pb.ModelInstanceGroup.KIND_GPU
    config.instance_group[0].kind = pb.ModelInstanceGroup.KIND_CPU
    return config


def _options(source, **more):
    return ConvertOptions(str(source), name="chances", engine="tensorrt", **more)


def _pins(repository):
    config = parse((repository / "chances" / "config.pbtxt").read_text())
    return {step.model_name: step.model_version for step in config.ensemble_scheduling.step}


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU here")
def test_without_a_gpu_one_line_says_so_and_the_onnx_engine_is_published(source, paths):
    command = ("convert", str(source), "--name", "chances", "--engine", "tensorrt")
    run = tidegate(paths.home, *command)
    assert run.returncode == 0, run.stderr
    lines = [line for line in run.stdout.splitlines() if "no NVIDIA GPU" in line]
    assert len(lines) == 1 and "The ONNX engine is served instead" in lines[0]
    assert _pins(paths.repository) == {"chances_onnx": 1}
    engine = paths.repository / "chances_onnx"
    gpu = parse((engine / "configs" / "gpu.pbtxt").read_text())
    assert list(gpu.version_policy.specific.versions) == [1]
    assert not (engine / "configs" / "tensorrt.pbtxt").exists()


def test_a_proved_plan_is_pinned_and_the_graph_before_it_stays(source, paths, gpu_box, tmp_path):
    messages = []
    run(ConvertOptions(str(source), name="chances"), paths, messages.append)
    run(_options(source), paths, messages.append)
    repository = paths.repository
    assert _pins(repository) == {"chances_trt": 1}
    assert (repository / "chances_onnx" / "1" / "model.onnx").is_file()
    folder = repository / "chances_trt"
    files = {path.name for path in (folder / "1").iterdir()}
    assert files == {"model.plan", "model.plan.json", "model.onnx", "reproduce.sh"} | {
        "proof.json",
        "proof.md",
    }
    assert {path.name for path in (folder / "configs").iterdir()} == {
        "gpu.pbtxt",
        "gpu-tensorrt.pbtxt",
        "tensorrt.pbtxt",
    }
    page = (folder / "1" / "proof.md").read_text()
    assert "## chances: the TensorRT engine on NVIDIA H100" in page
    assert "## chances: served by Triton as tensorrt" in page
    assert is_on(ModelRepository(repository), "chances", "tensorrt", messages.append)
    assert not is_on(ModelRepository(repository), "chances", "onnx", messages.append)
    proofs = prove(ProveOptions("chances", str(source)), paths, messages.append)
    assert all(proof.passed for proof in proofs)
    assert [proof.subject for proof in proofs] == [
        "chances: the graph",
        "chances: served by Triton",
        "chances: served by Triton as tensorrt",
    ]
    plant_gpu(tmp_path / "bin", "NVIDIA L4, 8.9, 580.65.06")
    assert not is_on(ModelRepository(repository), "chances", "tensorrt", messages.append)
    assert "must be rebuilt: compute_capability 9.0, here 8.9" in messages[-1]


def test_a_plan_that_fails_in_triton_is_not_pinned(source, paths, gpu_box):
    """It passes its proof in this process, but Triton's answers differ."""
    wrong = BACKEND.replace("Tensor(o.name, a)", "Tensor(o.name, a * a.dtype.type(1.01))")
    assert wrong != BACKEND
    (gpu_box / "tensorrt" / "model.py").write_text(wrong)
    with pytest.raises(ProofFailed, match="served by Triton as tensorrt: FAIL"):
        run(_options(source), paths, str)
    assert not list(paths.repository.glob("*"))


def test_a_triton_without_the_backend_is_reported(gpu_box):
    assert why_not_here() == ""
    shutil.rmtree(gpu_box / "tensorrt")
    messages = []
    built = Built(PIPELINE, converted=object())
    assert on_engine(built, "tensorrt", messages.append) is built
    (line,) = messages
    assert "no tensorrt backend: run in NVIDIA's container" in line
    assert line.endswith("The ONNX engine is served instead")
