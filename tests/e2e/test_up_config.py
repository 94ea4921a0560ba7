"""Which configs a stack serves with: ``tidegate up --config``."""

import json
import os
import shutil

import pytest

from modelspec.parameters import TUNED_PARAMETER
from serving.errors import ServingError
from serving.repository.model_repository import ModelRepository
from serving.triton.control import TritonControl, read_key
from serving.tuning.journal import engine_files, machine
from tests.running import launch, stop, wait_ready
from tests.serving.small_pipeline import MODELS, NAME, publish_staged, stage
from tidegate.app.configs import config_name, tuned_line, usable_gpu


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home with the small pipeline, tuned to batches of 4."""
    home = tmp_path_factory.mktemp("config")
    repository = home / "model_repository"
    publish_staged(stage(repository, 0), repository)
    files = engine_files(ModelRepository(repository), dict.fromkeys(MODELS, 1))
    measurement = {"ratio": 1.5, "connections": 32, "made_at": "2026-11-25T08:00:00+00:00"}
    for model in MODELS:
        config = ModelRepository(repository).config(model)
        config.max_batch_size = 4
        text = json.dumps({**measurement, "machine": machine(), "files": files})
        config.parameters[TUNED_PARAMETER].string_value = text
        ModelRepository(repository).write_profile(model, "tuned", config)
    return home


def test_a_tuned_config_is_served_and_reported(home):
    running = launch(home, NAME)
    try:
        wait_ready(running)
        with TritonControl(
            running.grpc_address, read_key(home / ".tidegate/triton.key")
        ) as control:
            assert control.config(NAME).max_batch_size == 4
        assert running.post(f"/v1/{NAME}", json={"x": 1}).json() == {"score": 1.0}
        versions = running.tidegate("versions", NAME).stdout
    finally:
        assert stop(running) == 0, running.output
    line = "mood 1.50x the default at 32 connections, measured 2026-11-25"
    assert f"configs tuned: {line} (--config default turns them off)" in running.output
    assert f"tuned: {line}\n" in versions


def test_it_can_be_turned_off_and_other_profiles_are_never_chosen_by_auto(home, tmp_path):
    messages = []
    repository = home / "model_repository"
    assert config_name(ModelRepository(repository), "default", messages.append) is None
    assert config_name(ModelRepository(tmp_path), "auto", messages.append) is None
    assert messages == []
    assert config_name(ModelRepository(repository), "tuned", messages.append) == "tuned"
    with pytest.raises(ServingError, match=r"no model has configs/gpu\.pbtxt: .*default, tuned"):
        config_name(ModelRepository(repository), "gpu", messages.append)


def test_an_outdated_measurement_is_reported(home):
    """Another engine was published: it is served with these serving parameters, which were not
    measured for it."""
    repository = home / "model_repository"
    publish_staged(stage(repository, 3), repository)
    assert "with a different engine or step than the active one" in tuned_line(
        ModelRepository(repository), NAME
    )


def test_auto_means_a_gpu_that_triton_can_use(home, tmp_path, monkeypatch):
    """Stand-ins: nvidia-smi, and the package that provides CUDA."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H200, 9.0, 580.1'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    repository, messages = tmp_path / "model_repository", []
    shutil.copytree(home / "model_repository", repository)
    model = MODELS[0]
    tuned = repository / model / "configs" / "tuned.pbtxt"
    shutil.copy(tuned, tuned.with_name("gpu.pbtxt"))
    usable_gpu.cache_clear()
    try:
        assert config_name(ModelRepository(repository), "auto", messages.append) == "tuned"
        assert "NVIDIA H200 is not used, because ONNX Runtime is installed without" in messages[0]
        messages.clear()
        usable_gpu.cache_clear()
        monkeypatch.setattr("tidegate.app.configs.version", lambda package: "1.31.1")
        assert config_name(ModelRepository(repository), "auto", messages.append) == "gpu"
        assert messages[0].startswith("using NVIDIA H200 instead of tuned")
        assert f"configs gpu: of {model}" in messages[1]
        assert config_name(ModelRepository(repository), "default", messages.append) is None
    finally:
        usable_gpu.cache_clear()
