"""Config profiles say how a model runs, and are synced with the main config on what it serves."""

import shutil

import pytest

from modelspec.layout import staging_folder
from modelspec.parameters import TUNED_PARAMETER
from modelspec.pbtxt import parse
from serving.errors import PublishFailed
from serving.publish.deployment import Deployment
from serving.publish.import_pipeline import import_pipeline
from serving.publish.phases import PublishPhase
from serving.publish.publish import publish
from serving.publish.recovery import recover
from serving.publish.versions import switch_to
from serving.repository.config_profiles import (
    TUNED,
    place_profile,
    profile_names,
    profile_path,
    read_profiles,
    remove_profile,
    synced_with,
)
from serving.repository.files import place
from serving.repository.model_repository import read_config
from serving.repository.pins import as_bytes, listed_versions, pins, with_versions
from tests.serving.small_pipeline import MODELS, NAME, stage


@pytest.fixture
def repository(tmp_path):
    """The small pipeline's first version, with a config profile of each model: other instances, and
    batches of 4 instead of 8."""
    repository = tmp_path / "model_repository"
    publish(stage(repository, 1), repository, MODELS)
    tune(repository)
    return repository


def tune(repository, instances=3, rows=4):
    for model in MODELS:
        config = read_config(repository, model)
        config.max_batch_size = rows
        config.parameters[TUNED_PARAMETER].string_value = '{"ratio": 1.2}'
        if config.instance_group:
            config.instance_group[0].count = instances
        place_profile(repository, model, TUNED, config)


def tuned(repository, model):
    return parse(profile_path(repository, model, TUNED).read_text())


def in_step(repository):
    """Assert that each config profile pins, lists and declares what its main config does; returns
    the version of each model."""
    for model in MODELS:
        main, profile = read_config(repository, model), tuned(repository, model)
        assert listed_versions(profile) == listed_versions(main)
        assert pins(profile) == pins(main)
        for key in ("tidegate.endpoint", "tidegate.golden", "tidegate.internal"):
            assert profile.parameters[key] == main.parameters[key]
        assert profile.max_batch_size == 4
        assert TUNED_PARAMETER in profile.parameters
    return {model: max(listed_versions(tuned(repository, model)) or [1]) for model in MODELS}


def test_a_publication_and_a_rollback_sync_the_profiles(repository):
    assert in_step(repository) == {"mood_pre": 1, "mood_onnx": 1, "mood": 1}
    publish(stage(repository, 5), repository, MODELS)
    assert in_step(repository) == {"mood_pre": 1, "mood_onnx": 2, "mood": 2}
    assert tuned(repository, "mood_onnx").instance_group[0].count == 3
    switch_to(Deployment(repository), NAME, 1)
    assert in_step(repository) == {"mood_pre": 1, "mood_onnx": 1, "mood": 1}


@pytest.mark.parametrize(
    "fatal",
    [PublishPhase.JOURNALLED, PublishPhase.LISTED, PublishPhase.PINNED, PublishPhase.RETIRED],
)
def test_an_interrupted_publication_leaves_them_synced(repository, fatal):
    class Cut(BaseException):
        """Like a kill: the interrupted publication clears up nothing."""

    def cut(phase, model):
        if phase == fatal:
            raise Cut

    before = {model: tuned(repository, model) for model in MODELS}
    with pytest.raises(Cut):
        publish(stage(repository, 5), repository, MODELS, Deployment(repository, tell=cut))
    recover(Deployment(repository))
    versions = in_step(repository)
    if versions["mood_onnx"] == 1:
        assert {model: tuned(repository, model) for model in MODELS} == before


def test_a_profile_that_fell_behind_is_synced_first(repository):
    """Killed between the two renames, or a config corrected by hand."""
    publish(stage(repository, 5), repository, MODELS)
    config = with_versions(read_config(repository, "mood_onnx"), [1, 2])
    place(repository, repository / "mood_onnx" / "config.pbtxt", as_bytes(config))
    assert listed_versions(tuned(repository, "mood_onnx")) == [2]
    recover(Deployment(repository))
    assert listed_versions(tuned(repository, "mood_onnx")) == [1, 2]


def test_a_synced_profile_is_not_written_again(repository):
    path = profile_path(repository, "mood_onnx", TUNED)
    before = path.stat()
    recover(Deployment(repository))
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_staged_profiles_are_published_with_the_assigned_versions(repository):
    staged = stage(repository, 7)
    config = read_config(staged, "mood_onnx")
    config.instance_group[0].count = 9
    (staged / "mood_onnx" / "configs").mkdir()
    (staged / "mood_onnx" / "configs" / "gpu.pbtxt").write_bytes(as_bytes(config))
    publish(staged, repository, MODELS)
    profiles = read_profiles(repository / "mood_onnx")
    assert listed_versions(profiles["gpu"]) == [2]
    assert profiles["gpu"].instance_group[0].count == 9
    assert profile_names(repository) == {"gpu": ["mood_onnx"], "tuned": sorted(MODELS)}


def test_a_profile_that_does_not_parse_does_not_stop_a_publication(repository):
    profile_path(repository, "mood_onnx", "gpu").write_text("max_batch_size: many")
    publish(stage(repository, 5), repository, MODELS)
    assert profile_path(repository, "mood_onnx", "gpu").read_text() == "max_batch_size: many"
    assert in_step(repository)["mood_onnx"] == 2


def test_no_profile_takes_larger_batches_than_were_proved(repository):
    main = read_config(repository, "mood_onnx")
    profile = tuned(repository, "mood_onnx")
    profile.max_batch_size = 64
    assert synced_with(main, profile).max_batch_size == main.max_batch_size == 8


def test_what_was_measured_elsewhere_is_not_imported(repository, tmp_path):
    config = read_config(repository, "mood_onnx")
    place_profile(repository, "mood_onnx", "gpu", config)
    other = tmp_path / "other" / "model_repository"
    with pytest.raises(PublishFailed, match="no manifest"):
        import_pipeline(_without_manifest(repository, tmp_path), Deployment(other))
    assert import_pipeline(repository, Deployment(other)) == (NAME, 1)
    assert profile_names(other) == {"gpu": ["mood_onnx"]}


def _without_manifest(repository, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(repository, copy)
    (copy / NAME / "1" / "manifest.json").unlink()
    return copy


def test_removing_the_last_profile_removes_the_folder(repository):
    remove_profile(repository, "mood_onnx", TUNED)
    assert not (repository / "mood_onnx" / "configs").exists()
    assert [path.name for path in staging_folder(repository).glob("file+*")] == []
