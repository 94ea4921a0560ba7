"""``tidegate convert --engine torch``: converted, proved, served and proved again, by a real Triton
on the CPU."""

import json
import shutil
import zipfile

import pytest
from tritonclient.grpc import model_config_pb2 as pb

from modelspec.pbtxt import parse
from serving.errors import ServingError
from serving.repository.model_repository import ModelRepository
from tests.converters.tasks.test_tensors import MODULE
from tests.tiny_image_models import save_image_classifier
from tests.tiny_models import save_classifier
from tidegate.app.convert import ConvertOptions, run
from tidegate.app.engines import SAME_PROGRAM, is_on, same_file
from tidegate.app.paths import Paths
from tidegate.app.prove import ProveOptions, prove
from tidegate.app.published import published_record
from tidegate.app.scratch import scratch_triton


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return Paths(tmp_path_factory.mktemp("torch_home"))


@pytest.fixture(scope="module")
def mood(tmp_path_factory, paths):
    """A BERT classifier, compiled: its folder, and what the conversion reported."""
    folder, messages = save_classifier("bert", tmp_path_factory.mktemp("mood") / "bert"), []
    options = ConvertOptions(str(folder), task="text-classification", name="mood", engine="torch")
    assert run(options, paths, messages.append).is_new
    return folder, messages


def _pins(paths, name):
    config = parse((paths.repository / name / "config.pbtxt").read_text())
    return {step.model_name: step.model_version for step in config.ensemble_scheduling.step}


def test_a_classifier_is_compiled_proved_and_pinned_with_its_steps_as_they_were(mood, paths):
    _, messages = mood
    assert not [message for message in messages if "operator by operator" in message]
    assert _pins(paths, "mood") == {"mood_pre": 1, "mood_torch": 1, "mood_post": 1}
    folder = paths.repository / "mood_torch"
    assert {path.name for path in (folder / "1").iterdir()} == {
        "model.pt2",
        "model.onnx",
        "proof.json",
        "proof.md",
    }
    config = parse((folder / "config.pbtxt").read_text())
    assert (config.backend, config.instance_group[0].kind) == (
        "torch_export",
        pb.ModelInstanceGroup.KIND_CPU,
    )
    gpu = parse((folder / "configs" / "gpu.pbtxt").read_text())
    assert gpu.default_model_filename == "model.cuda.pt2"
    assert gpu.instance_group[0].kind == pb.ModelInstanceGroup.KIND_GPU
    page = (folder / "1" / "proof.md").read_text()
    assert "## mood: the torch engine on the CPU, compiled by AOTInductor" in page
    assert "## mood: served by Triton" in page
    assert "Layers were not compared: this engine does not show them" in page


def test_the_published_engine_is_known_and_can_be_proved_again(mood, paths):
    source, _ = mood
    repository, messages = ModelRepository(paths.repository), []
    assert is_on(repository, "mood", "torch", messages.append)
    assert not is_on(repository, "mood", "onnx", messages.append)
    options = ConvertOptions(str(source), task="text-classification", name="mood", engine="torch")
    assert not run(options, paths, messages.append).is_new
    proofs = prove(ProveOptions("mood", str(source)), paths, messages.append)
    assert [proof.subject for proof in proofs] == [
        "mood: the graph",
        "mood: the torch engine on the CPU",
        "mood: served by Triton",
    ]
    assert all(proof.passed for proof in proofs)
    assert SAME_PROGRAM in [check.name for check in proofs[1].checks]


def test_a_program_that_is_not_the_one_that_was_proved_is_found(mood, paths, tmp_path):
    record = published_record(ModelRepository(paths.repository), "mood")
    assert set(record.programs_sha256) == {"model.pt2"}
    file = tmp_path / "model.pt2"
    shutil.copy(paths.repository / "mood_torch" / "1" / "model.pt2", file)
    assert same_file(SAME_PROGRAM, record.programs_sha256[file.name], file).passed
    with file.open("ab") as program:
        program.write(b"0")
    check = same_file(SAME_PROGRAM, record.programs_sha256[file.name], file)
    assert not check.passed
    assert "convert it again" in check.worst


def test_a_file_of_another_torch_is_refused_by_triton_in_one_sentence(mood, paths):
    file = paths.repository / "mood_torch" / "1" / "model.pt2"
    whole, entry = file.read_bytes(), "extra/tidegate.json"
    with zipfile.ZipFile(file) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(entry))
        stamp = json.loads(archive.read(name))
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(name, json.dumps({**stamp, "torch": "2.1.0"}))
    messages = []
    try:
        assert not is_on(ModelRepository(paths.repository), "mood", "torch", messages.append)
        with (
            pytest.raises(ServingError, match=r"made with torch 2\.1\.0, and this is"),
            scratch_triton(ModelRepository(paths.repository), paths.state, "mood_torch"),
        ):
            pass
    finally:
        file.write_bytes(whole)
    assert "mood: the engine must be rebuilt: it was made with torch 2.1.0" in messages[-1]


def test_without_a_compiler_a_module_is_served_as_an_exported_program(paths, tmp_path, monkeypatch):
    (tmp_path / "torch_served_nets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXX", "no-such-compiler")
    messages = []
    options = ConvertOptions("torch_served_nets:good", name="net", engine="torch")
    assert run(options, paths, messages.append).is_new
    (reason,) = (message for message in messages if "no-such-compiler" in message)
    assert "The exported program is served as it is" in reason
    assert _pins(paths, "net") == {"net_torch": 1}
    page = (paths.repository / "net_torch" / "1" / "proof.md").read_text()
    assert "## net: the torch engine on the CPU, run operator by operator" in page


def test_an_image_classifier_is_served_by_torch(paths, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    folder = save_image_classifier("resnet", tmp_path / "resnet")
    options = ConvertOptions(
        str(folder), task="image-classification", name="photos", engine="torch"
    )
    assert run(options, paths, str).is_new
    assert _pins(paths, "photos") == {"photos_pre": 1, "photos_torch": 1, "photos_post": 1}


def test_the_onnx_engine_replaces_it_again(paths, tmp_path, monkeypatch):
    (tmp_path / "torch_replaced_nets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXX", "no-such-compiler")
    source = "torch_replaced_nets:good"
    assert run(ConvertOptions(source, name="twice", engine="torch"), paths, str).is_new
    assert run(ConvertOptions(source, name="twice"), paths, str).is_new
    assert _pins(paths, "twice") == {"twice_onnx": 1}
    assert is_on(ModelRepository(paths.repository), "twice", "onnx", str)
