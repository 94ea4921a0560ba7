"""Config profiles say how a model runs, and are synced with the main config on what it serves."""

import shutil

import pytest

from modelspec.layout import staging_folder
from modelspec.parameters import TUNED_PARAMETER
from modelspec.pbtxt import parse, render
from serving.errors import PublishFailed
from serving.publish.deployment import Deployment
from serving.publish.import_pipeline import import_pipeline
from serving.publish.phases import PublishPhase
from serving.publish.publish import publish
from serving.publish.recovery import recover
from serving.publish.versions import switch_to
from serving.repository.configs import (
    TUNED,
    pins,
    policy_versions,
    synced_with,
    with_versions,
)
from serving.repository.model_repository import ModelRepository
from tests.serving.small_pipeline import MODELS, NAME, publish_staged, stage


@pytest.fixture
def repository(tmp_path):
    """The small pipeline's first version, with a config profile of each model: other instances, and
    batches of 4 instead of 8."""
    repository = tmp_path / "model_repository"
    publish_staged(stage(repository, 1), repository)
    tune(repository)
    return repository


def tune(repository, instances=3, rows=4):
    for model in MODELS:
        config = ModelRepository(repository).config(model)
        config.max_batch_size = rows
        config.parameters[TUNED_PARAMETER].string_value = '{"ratio": 1.2}'
        if config.instance_group:
            config.instance_group[0].count = instances
        ModelRepository(repository).write_profile(model, TUNED, config)


def profile_path(repository, model, name=TUNED):
    return repository / model / "configs" / f"{name}.pbtxt"


def tuned(repository, model):
    return parse(profile_path(repository, model).read_text())


def in_step(repository):
    """Assert that each config profile pins, lists and declares what its main config does; returns
    the version of each model."""
    for model in MODELS:
        main, profile = ModelRepository(repository).config(model), tuned(repository, model)
        assert policy_versions(profile) == policy_versions(main)
        assert pins(profile) == pins(main)
        for key in ("tidegate.endpoint", "tidegate.golden", "tidegate.internal"):
            assert profile.parameters[key] == main.parameters[key]
        assert profile.max_batch_size == 4
        assert TUNED_PARAMETER in profile.parameters
    return {model: max(policy_versions(tuned(repository, model)) or [1]) for model in MODELS}


def test_a_publication_and_a_rollback_sync_the_profiles(repository):
    assert in_step(repository) == {"mood_pre": 1, "mood_onnx": 1, "mood": 1}
    publish_staged(stage(repository, 5), repository)
    assert in_step(repository) == {"mood_pre": 1, "mood_onnx": 2, "mood": 2}
    assert tuned(repository, "mood_onnx").instance_group[0].count == 3
    switch_to(Deployment(ModelRepository(repository)), NAME, 1)
    assert in_step(repository) == {"mood_pre": 1, "mood_onnx": 1, "mood": 1}


@pytest.mark.parametrize(
    "fatal",
    [
        PublishPhase.JOURNALLED,
        PublishPhase.POLICIES_WIDENED,
        PublishPhase.PINNED,
        PublishPhase.RETIRED,
    ],
)
def test_an_interrupted_publication_leaves_them_synced(repository, fatal):
    class Cut(BaseException):
        """Like a kill: the interrupted publication clears up nothing."""

    def cut(phase, model):
        if phase == fatal:
            raise Cut

    before = {model: tuned(repository, model) for model in MODELS}
    with pytest.raises(Cut):
        publish(
            ModelRepository(stage(repository, 5)),
            MODELS,
            Deployment(ModelRepository(repository), report=cut),
        )
    recover(Deployment(ModelRepository(repository)))
    versions = in_step(repository)
    if versions["mood_onnx"] == 1:
        assert {model: tuned(repository, model) for model in MODELS} == before


def test_a_profile_that_fell_behind_is_synced_first(repository):
    """Killed between the two renames, or a config corrected by hand."""
    publish_staged(stage(repository, 5), repository)
    config = with_versions(ModelRepository(repository).config("mood_onnx"), [1, 2])
    ModelRepository(repository).write(
        repository / "mood_onnx" / "config.pbtxt", render(config).encode()
    )
    assert policy_versions(tuned(repository, "mood_onnx")) == [2]
    recover(Deployment(ModelRepository(repository)))
    assert policy_versions(tuned(repository, "mood_onnx")) == [1, 2]


def test_a_synced_profile_is_not_written_again(repository):
    path = profile_path(repository, "mood_onnx")
    before = path.stat()
    recover(Deployment(ModelRepository(repository)))
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_staged_profiles_are_published_with_the_assigned_versions(repository):
    staged = stage(repository, 7)
    config = ModelRepository(staged).config("mood_onnx")
    config.instance_group[0].count = 9
    (staged / "mood_onnx" / "configs").mkdir()
    (staged / "mood_onnx" / "configs" / "gpu.pbtxt").write_bytes(render(config).encode())
    publish_staged(staged, repository)
    profiles = ModelRepository(repository).profiles("mood_onnx")
    assert policy_versions(profiles["gpu"]) == [2]
    assert profiles["gpu"].instance_group[0].count == 9
    assert ModelRepository(repository).models_by_profile() == {
        "gpu": ["mood_onnx"],
        "tuned": sorted(MODELS),
    }


def test_a_profile_that_does_not_parse_does_not_stop_a_publication(repository):
    profile_path(repository, "mood_onnx", "gpu").write_text("max_batch_size: many")
    publish_staged(stage(repository, 5), repository)
    assert profile_path(repository, "mood_onnx", "gpu").read_text() == "max_batch_size: many"
    assert in_step(repository)["mood_onnx"] == 2


def test_no_profile_takes_larger_batches_than_were_proved(repository):
    main = ModelRepository(repository).config("mood_onnx")
    profile = tuned(repository, "mood_onnx")
    profile.max_batch_size = 64
    assert synced_with(main, profile).max_batch_size == main.max_batch_size == 8


def test_what_was_measured_elsewhere_is_not_imported(repository, tmp_path):
    config = ModelRepository(repository).config("mood_onnx")
    ModelRepository(repository).write_profile("mood_onnx", "gpu", config)
    other = tmp_path / "other" / "model_repository"
    with pytest.raises(PublishFailed, match="no manifest"):
        import_pipeline(_without_manifest(repository, tmp_path), Deployment(ModelRepository(other)))
    assert import_pipeline(repository, Deployment(ModelRepository(other))) == (NAME, 1)
    assert ModelRepository(other).models_by_profile() == {"gpu": ["mood_onnx"]}


def _without_manifest(repository, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(repository, copy)
    (copy / NAME / "1" / "manifest.json").unlink()
    return copy


def test_removing_the_last_profile_removes_the_folder(repository):
    ModelRepository(repository).remove_profile("mood_onnx", TUNED)
    assert not (repository / "mood_onnx" / "configs").exists()
    assert [path.name for path in staging_folder(repository).glob("file+*")] == []
