"""A name alone does not make a model a canary or a candidate: users' models are never removed."""

import shutil

import pytest
from click.testing import CliRunner

from modelspec.layout import CONFIG_FILE
from modelspec.names import require_pipeline_name
from modelspec.pbtxt import render
from serving.errors import PublishFailed
from serving.publish import canary, candidate
from serving.publish.deployment import Deployment
from serving.publish.import_pipeline import import_pipeline
from serving.publish.versions import prune
from serving.repository.model_repository import ModelRepository
from tests.serving.small_pipeline import NAME, publish_staged, stage
from tidegate.cli import cli
from tidegate.commands.canary import command as canary_command


@pytest.fixture
def deployment(tmp_path):
    repository = tmp_path / "model_repository"
    for add in (1, 2):
        publish_staged(stage(repository, add), repository)
    return Deployment(ModelRepository(repository), grace_s=0)


def _add_users_model(deployment, name):
    """A user's public model of that name, as an older Tidegate accepted it."""
    folder = deployment.repository.path / name
    shutil.copytree(deployment.repository.path / NAME, folder)
    config = deployment.repository.config(NAME)
    config.name = name
    (folder / CONFIG_FILE).write_text(render(config))
    return folder


def test_a_model_named_like_a_canary_is_not_removed(deployment):
    folder = _add_users_model(deployment, "mood.v1")
    assert canary.canaries(deployment.repository, NAME) == []
    with pytest.raises(PublishFailed, match="a separate model and not a canary"):
        canary.stop(deployment, NAME, 1)
    with pytest.raises(PublishFailed, match="a separate model and not a canary"):
        canary.start(deployment, NAME, 1)
    assert (folder / CONFIG_FILE).is_file()


def test_a_real_canary_is_started_and_removed(deployment):
    assert canary.start(deployment, NAME, 1) == "mood.v1"
    assert canary.canaries(deployment.repository, NAME) == [1]
    canary.stop(deployment, NAME, 1)
    assert not deployment.repository.is_published("mood.v1")


def test_the_commands_do_not_remove_it_either(deployment, monkeypatch, tmp_path):
    folder = _add_users_model(deployment, "mood.v1")
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path))
    for more in ([], ["--version", "1"]):
        run = CliRunner().invoke(canary_command, [NAME, "--weight", "0", "--grace", "0", *more])
        assert isinstance(run.exception, PublishFailed)
    assert folder.is_dir()


def test_a_model_named_like_a_candidate_is_not_removed(deployment):
    folder = _add_users_model(deployment, "mood.candidate")
    candidate.clear(deployment, NAME)
    assert folder.is_dir()


def test_prune_keeps_a_member_that_clients_call(deployment):
    config = deployment.repository.config("mood_onnx")
    config.parameters.pop("tidegate.internal")
    (deployment.repository.path / "mood_onnx" / CONFIG_FILE).write_text(render(config))
    deleted, _ = prune(deployment, NAME, 1)
    assert deleted == ["mood/1"]
    assert (deployment.repository.path / "mood_onnx" / "1").is_dir()


@pytest.mark.parametrize("name", ["mood.v2", "mood.v10", "mood.candidate"])
def test_such_a_name_is_refused_for_a_new_model(name, deployment, tmp_path):
    with pytest.raises(ValueError, match="choose another, such as 'mood_"):
        require_pipeline_name(name)
    run = CliRunner().invoke(cli, ["convert", "m.onnx", "--name", name])
    assert run.exit_code == 2
    assert "canaries" in run.output
    with pytest.raises(PublishFailed, match="canaries"):
        import_pipeline(tmp_path, deployment, name=name)


@pytest.mark.parametrize("name", ["mood.v", "mood.vi", "v2", "mood_v2", "mood.v2.1"])
def test_other_names_are_accepted(name):
    assert require_pipeline_name(name) == name


def test_optimize_removes_no_folder_outside_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path))
    (tmp_path / "precious").mkdir()
    arguments = ["optimize", "../../precious", "--against", "m.onnx", "--fresh", "--only", "model"]
    assert CliRunner().invoke(cli, arguments).exit_code == 2
    assert (tmp_path / "precious").is_dir()
