"""Whether what is published does what the source does: the newest generation of a step counts."""

import shutil
from types import SimpleNamespace

import pytest

from modelspec.layout import CONFIG_FILE, STEP_FILE
from serving.repository.model_repository import ModelRepository
from tidegate.app.pipelines import has_step, step_file

SPEC = SimpleNamespace(name="mood_post", step="choose_labels")


@pytest.fixture
def repository(tmp_path):
    return ModelRepository(tmp_path / "model_repository")


def _published(repository, name, version, source):
    folder = repository.version_folder(name, version)
    folder.mkdir(parents=True)
    (repository.folder(name) / CONFIG_FILE).write_text(f'name: "{name}"')
    if source:
        shutil.copy(step_file(SPEC.step), folder / STEP_FILE)
    else:
        (folder / STEP_FILE).write_text("OLD = True\n")


def test_the_newest_version_counts(repository):
    _published(repository, "mood_post", 1, source=True)
    assert has_step(repository, SPEC)
    _published(repository, "mood_post", 2, source=False)
    assert not has_step(repository, SPEC)


def test_the_newest_generation_counts(repository):
    """A step whose config has changed is published under another name."""
    _published(repository, "mood_post", 3, source=False)
    _published(repository, "mood_post.g2", 1, source=False)
    assert not has_step(repository, SPEC)
    _published(repository, "mood_post.g3", 1, source=True)
    assert has_step(repository, SPEC)
