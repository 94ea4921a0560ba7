"""Publishing: whole versions appear by a rename, and what fails leaves what was there."""

import os

import pytest

from modelspec.layout import staging_folder, version_folders
from serving.errors import PublishFailed
from serving.publish import is_published, publish
from serving.repository import top_models


@pytest.fixture
def repository(tmp_path):
    return tmp_path / "model_repository"


def _stage(repository, name: str, content: str, config: str = "max_batch_size: 0\n"):
    staged = staging_folder(repository) / "try"
    version = staged / name / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(content)
    (staged / name / "config.pbtxt").write_text(config)
    return staged


def test_a_staged_model_appears_whole(repository):
    assert not is_published(repository, "m")
    staged = _stage(repository, "m", "one")
    publish(staged, repository, ["m"])
    assert is_published(repository, "m")
    assert (repository / "m" / "1" / "model.py").read_text() == "one"
    assert not (staged / "m").exists()


def test_nothing_but_models_lies_in_the_repository(repository):
    """Triton lists every sub-folder as a model, dot-folders too."""
    publish(_stage(repository, "m", "one"), repository, ["m"])
    assert [path.name for path in repository.iterdir()] == ["m"]
    assert staging_folder(repository).parent == repository.parent


def test_a_version_that_is_there_is_replaced_whole(repository):
    publish(_stage(repository, "m", "one"), repository, ["m"])
    (repository / "m" / "1" / "left-over").touch()
    publish(_stage(repository, "m", "two"), repository, ["m"])
    assert [path.name for path in (repository / "m" / "1").iterdir()] == ["model.py"]
    assert (repository / "m" / "1" / "model.py").read_text() == "two"


def test_an_unchanged_config_is_not_written_again(repository):
    """Triton reloads a model whose config file has changed, content or not."""
    publish(_stage(repository, "m", "one"), repository, ["m"])
    before = (repository / "m" / "config.pbtxt").stat()
    publish(_stage(repository, "m", "two"), repository, ["m"])
    after = (repository / "m" / "config.pbtxt").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_disk_that_refuses_is_told_plainly(repository, monkeypatch):
    staged = _stage(repository, "m", "one")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PublishFailed, match=r"No space left on device.*Check the disk"):
        publish(staged, repository, ["m"])
    assert not is_published(repository, "m")


def test_top_models_are_those_with_a_version_that_are_not_internal(repository):
    internal = 'parameters { key: "tidegate.internal" value { string_value: "true" } }\n'
    publish(_stage(repository, "engine", "x", internal), repository, ["engine"])
    publish(_stage(repository, "mine", "x"), repository, ["mine"])
    (repository / "no_version").mkdir()
    (repository / "README.md").touch()
    (repository / "no_config" / "3").mkdir(parents=True)
    assert top_models(repository) == ["mine", "no_config"]
    assert top_models(repository / "nowhere") == []


def test_version_folders_are_numbers_in_order(tmp_path):
    for name in ("10", "2", "x", "configs"):
        (tmp_path / name).mkdir()
    (tmp_path / "3").touch()
    assert version_folders(tmp_path) == [2, 10]
