"""Publishing: whole versions appear by one rename, and a failure leaves the old state."""

import importlib
import os
import tempfile
from pathlib import Path

import pytest

from modelspec.layout import staging_folder
from modelspec.pbtxt import render, to_proto
from modelspec.staging import stage_model
from serving.errors import PublishFailed
from serving.repository.model_repository import ModelRepository
from tests.serving.small_pipeline import publish_staged
from tidegate.app.task_registry import KNOWN


@pytest.fixture
def repository(tmp_path):
    return tmp_path / "model_repository"


def _create(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _stage(repository, name: str, content: str, config: str = "max_batch_size: 0\n"):
    staged = Path(tempfile.mkdtemp(dir=_create(staging_folder(repository))))
    version = staged / name / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(content)
    (staged / name / "config.pbtxt").write_text(config)
    return staged


def test_a_staged_model_appears_whole(repository):
    assert not ModelRepository(repository).is_published("m")
    staged = _stage(repository, "m", "one")
    publish_staged(staged, repository, ["m"])
    assert ModelRepository(repository).is_published("m")
    assert (repository / "m" / "1" / "model.py").read_text() == "one"
    assert not (staged / "m" / "1").exists()


def test_the_repository_contains_nothing_but_models(repository):
    """To Triton every subfolder is a model, even one whose name starts with a dot."""
    publish_staged(_stage(repository, "m", "one"), repository, ["m"])
    assert [path.name for path in repository.iterdir()] == ["m"]
    assert staging_folder(repository).parent == repository.parent


def test_a_model_that_declares_nonsense_hinders_no_publication(repository):
    for name, parameter, text in (
        ("bad", "tidegate.golden", "not JSON"),
        ("worse", "tidegate.golden", "{}"),
        ("worst", "tidegate.endpoint", "["),
    ):
        config = f'parameters {{ key: "{parameter}" value {{ string_value: "{text}" }} }}\n'
        publish_staged(_stage(repository, name, "one", config), repository, [name])
    assert publish_staged(_stage(repository, "m", "one"), repository, ["m"]) == 1
    assert ModelRepository(repository).public_models() == ["bad", "m", "worse", "worst"]


def test_a_published_version_is_never_touched_again(repository):
    publish_staged(_stage(repository, "m", "one"), repository, ["m"])
    (repository / "m" / "1" / "left-over").touch()
    before = {path: path.stat().st_mtime_ns for path in (repository / "m" / "1").rglob("*")}
    assert publish_staged(_stage(repository, "m", "two"), repository, ["m"]) == 2
    after = {path: path.stat().st_mtime_ns for path in (repository / "m" / "1").rglob("*")}
    assert after == before
    assert (repository / "m" / "2" / "model.py").read_text() == "two"


def test_an_unchanged_config_is_not_written_again(repository):
    """Triton reloads a model whose config file was written, even with the same content."""
    publish_staged(_stage(repository, "m", "one"), repository, ["m"])
    before = (repository / "m" / "config.pbtxt").stat()
    publish_staged(_stage(repository, "m", "one"), repository, ["m"])
    after = (repository / "m" / "config.pbtxt").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_full_disk_is_reported_plainly(repository, monkeypatch):
    staged = _stage(repository, "m", "one")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PublishFailed, match=r"No space left on device.*Check disk space"):
        publish_staged(staged, repository, ["m"])
    assert not ModelRepository(repository).is_published("m")


def test_top_models_are_those_with_a_version_that_are_not_internal(repository):
    internal = 'parameters { key: "tidegate.internal" value { string_value: "true" } }\n'
    publish_staged(_stage(repository, "engine", "x", internal), repository, ["engine"])
    publish_staged(_stage(repository, "mine", "x"), repository, ["mine"])
    (repository / "no_version").mkdir()
    (repository / "README.md").touch()
    (repository / "no_config" / "3").mkdir(parents=True)
    assert ModelRepository(repository).public_models() == ["mine", "no_config"]
    assert ModelRepository(repository / "nowhere").public_models() == []


@pytest.mark.parametrize("name", KNOWN)
def test_a_first_publication_leaves_the_committed_configs_byte_equal(repository, name):
    """Even if they exist already, as after a git checkout."""
    pipeline = importlib.import_module(f"ensembles.{name}").PIPELINE
    staged = _create(staging_folder(repository) / "try")
    step = _create(repository.parent / "files") / "model.py"
    step.write_text("x = 1\n")
    for spec in pipeline.models:
        stage_model(staged, spec, {} if spec.steps else {"model.py": step})
        config = render(to_proto(spec))
        _create(repository / spec.name).joinpath("config.pbtxt").write_text(config)
    assert publish_staged(staged, repository, [spec.name for spec in pipeline.models]) == 1
    for spec in pipeline.models:
        config = (repository / spec.name / "config.pbtxt").read_text()
        assert config == render(to_proto(spec))
        assert ModelRepository(repository).versions(spec.name) == [1]


def test_a_publication_that_fails_leaves_a_checked_out_config_as_it_was(repository, monkeypatch):
    staged = _stage(repository, "m", "one")
    _create(repository / "m").joinpath("config.pbtxt").write_text("# by hand\nmax_batch_size: 0\n")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(PublishFailed, match="No space"):
            publish_staged(staged, repository, ["m"])
    assert [path.name for path in (repository / "m").iterdir()] == ["config.pbtxt"]
    assert (repository / "m" / "config.pbtxt").read_text().startswith("# by hand")
    assert publish_staged(staged, repository, ["m"]) == 1
