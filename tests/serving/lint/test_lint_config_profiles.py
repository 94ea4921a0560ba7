"""The linter reads configs/NAME.pbtxt as a Triton with --model-config-name=NAME does."""

import pytest

from modelspec.parameters import TUNED_PARAMETER
from modelspec.pbtxt import render
from serving.lint.check import lint
from serving.repository.model_repository import ModelRepository
from tests.serving.small_pipeline import MODELS, NAME, publish_staged, stage


@pytest.fixture
def repository(tmp_path):
    repository = tmp_path / "model_repository"
    publish_staged(stage(repository, 0), repository)
    return repository


def add_profile(repository, model, change, name="gpu"):
    config = ModelRepository(repository).config(model)
    change(config)
    folder = repository / model / "configs"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.pbtxt").write_bytes(render(config).encode())


def findings(repository):
    return {(finding.code, finding.location) for finding in lint(ModelRepository(repository))}


def test_a_profile_that_changes_nothing_adds_no_finding(repository):
    before = findings(repository)
    add_profile(repository, "mood_onnx", lambda config: None)
    add_profile(repository, NAME, lambda config: None)
    assert findings(repository) == before


def _other_version(config):
    config.version_policy.specific.versions[:] = [2]


def _smaller_batch(config):
    config.max_batch_size = 2


def _queue_policy(config):
    config.dynamic_batching.default_queue_policy.max_queue_size = 4


def _too_many(config):
    config.backend = "onnxruntime"
    config.instance_group[0].count = 1000


@pytest.mark.parametrize(
    ("change", "code", "location"),
    [
        (_other_version, "config-profile-behind", "mood_onnx/configs/gpu.pbtxt"),
        (_smaller_batch, "batch-too-large", "mood/config.pbtxt:step 2 (mood_onnx)"),
        (_queue_policy, "queue-policy", "mood_onnx/configs/gpu.pbtxt"),
        (_too_many, "threads-unset", "mood_onnx/configs/gpu.pbtxt"),
    ],
)
def test_a_fault_of_a_profile_is_found(repository, change, code, location):
    before = findings(repository)
    add_profile(repository, "mood_onnx", change)
    new = findings(repository) - before
    assert (code, location) in new
    assert all(
        "'gpu'" in f.message
        for f in lint(ModelRepository(repository))
        if f.code == code != "config-profile-behind"
    )


@pytest.mark.parametrize("model", ["mood_pre", "mood_onnx"])
def test_a_profile_of_the_whole_pipeline_agrees_with_itself(repository, model):
    for name in MODELS:
        add_profile(repository, name, _smaller_batch)
    assert "batch-too-large" not in {code for code, _ in findings(repository)}
    (repository / model / "configs" / "gpu.pbtxt").unlink()
    assert "batch-too-large" not in {code for code, _ in findings(repository)}


@pytest.mark.parametrize(("cores", "warns"), [(2, False), (1, True)])
def test_instances_that_were_measured_may_share_the_cores(repository, cores, warns):
    def four_threads(config):
        config.backend = "onnxruntime"
        config.instance_group[0].count = 4
        config.parameters["intra_op_thread_count"].string_value = "1"
        config.parameters[TUNED_PARAMETER].string_value = "{}"

    add_profile(repository, "mood_onnx", four_threads, "tuned")
    codes = {finding.code for finding in lint(ModelRepository(repository), cores)}
    assert ("threads-over-cores" in codes) == warns
