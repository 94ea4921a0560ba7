"""Versions of a pipeline on disk, without a server: numbers, pins, manifests, rollback, prune."""

import json
import os
import subprocess
from unittest.mock import Mock

import pytest

from modelspec.held import held_folder
from modelspec.layout import staging_folder
from serving.errors import PublishFailed, RepositoryBusy, Tampered
from serving.publish.deployment import Deployment
from serving.publish.recovery import clear_up
from serving.publish.versions import prune, switch_to
from serving.repository.configs import policy_versions
from serving.repository.model_repository import ModelRepository
from tests.serving.small_pipeline import MODELS, NAME, publish_staged, stage


@pytest.fixture
def repository(tmp_path):
    return tmp_path / "model_repository"


@pytest.fixture
def deployment(repository):
    return Deployment(ModelRepository(repository))


def _publish(repository, *adds: float) -> int:
    for add in adds:
        number = publish_staged(stage(repository, add), repository)
    return number


def _state(repository) -> dict[str, bytes]:
    """Every file of the repository and its bytes."""
    return {
        str(path.relative_to(repository)): path.read_bytes()
        for path in sorted(repository.rglob("*"))
        if path.is_file()
    }


def test_the_first_publication_is_version_1_and_leaves_the_configs_as_declared(repository):
    staged = stage(repository, 1)
    declared = {model: (staged / model / "config.pbtxt").read_bytes() for model in MODELS}
    assert publish_staged(staged, repository) == 1
    for model in MODELS:
        assert (repository / model / "config.pbtxt").read_bytes() == declared[model]
        assert ModelRepository(repository).versions(model) == [1]


def test_a_changed_engine_gets_the_next_number_and_an_unchanged_step_keeps_its_own(repository):
    assert _publish(repository, 1, 2) == 2
    assert ModelRepository(repository).pinned_members(NAME) == {"mood_pre": 1, "mood_onnx": 2}
    assert ModelRepository(repository).versions("mood_pre") == [1]
    assert ModelRepository(repository).versions("mood_onnx") == [1, 2]
    assert policy_versions(ModelRepository(repository).config("mood_onnx")) == [2]
    assert policy_versions(ModelRepository(repository).config(NAME)) == [2]


def test_an_unchanged_pipeline_is_not_published_again(repository):
    _publish(repository, 1, 2)
    before = _state(repository)
    assert _publish(repository, 2) == 2
    assert _state(repository) == before


def test_publishing_an_old_engine_again_reuses_its_folder(repository):
    assert _publish(repository, 1, 2, 1) == 3
    assert ModelRepository(repository).pinned_members(NAME) == {"mood_pre": 1, "mood_onnx": 1}
    assert ModelRepository(repository).versions("mood_onnx") == [1, 2]


def test_an_engine_whose_tensors_changed_becomes_a_separate_model(repository):
    """Triton has one config for all versions of a model: the old one would break."""
    _publish(repository, 1)
    staged = stage(repository, 2)
    config = staged / "mood_onnx" / "config.pbtxt"
    config.write_text(config.read_text().replace("max_batch_size: 8", "max_batch_size: 4"))
    publish_staged(staged, repository)
    assert ModelRepository(repository).pinned_members(NAME) == {"mood_pre": 1, "mood_onnx.g2": 1}
    assert policy_versions(ModelRepository(repository).config("mood_onnx")) == [1]
    assert switch_to(Deployment(ModelRepository(repository)), NAME, 1) == 1
    assert ModelRepository(repository).pinned_members(NAME) == {"mood_pre": 1, "mood_onnx": 1}


def test_other_serving_parameters_keep_the_model(repository):
    _publish(repository, 1)
    staged = stage(repository, 1)
    config = staged / "mood_onnx" / "config.pbtxt"
    config.write_text(config.read_text().replace("count: 2", "count: 3"))
    publish_staged(staged, repository)
    assert ModelRepository(repository).pinned_members(NAME) == {"mood_pre": 1, "mood_onnx": 1}


def test_the_manifest_names_every_file_and_where_it_came_from(repository):
    staged = stage(repository, 1)
    proof = {
        "passed": True,
        "accepted": "",
        "source": "x",
        "precision": "fp32",
        "tools": {"t": "1"},
    }
    proof["proofs"] = [{"checks": [{}, {}]}]
    (staged / "mood_onnx" / "1" / "proof.json").write_text(json.dumps(proof))
    publish_staged(staged, repository)
    record = ModelRepository(repository).manifest(NAME, 1)
    assert record.members == {"mood_pre": 1, "mood_onnx": 1}
    assert {"mood_onnx/1/model.py", "mood_pre/1/model.py", "mood/1/config.pbtxt"} <= set(
        record.files
    )
    assert record.proof["mood_onnx"]["checks"] == 2
    assert record.tools["t"] == "1"
    assert len(record.git_commit.removesuffix("+changes")) == 40
    assert record.summary() == "mood_onnx: 2 checks, passed"
    ModelRepository(repository).verify(record)


@pytest.mark.parametrize(
    ("spoil", "file"),
    [
        (
            lambda r: (r / "mood_onnx/1/model.py").write_text("x"),
            "mood_onnx/1/model.py has changed",
        ),
        (lambda r: (r / "mood_pre/1/model.py").unlink(), "mood_pre/1/model.py is missing"),
        (lambda r: (r / "mood_onnx/1/more.py").touch(), "mood_onnx/1/more.py was added"),
        (lambda r: (r / "mood/1/config.pbtxt").write_text(""), "mood/1/config.pbtxt has changed"),
        (lambda r: (r / "mood/1/manifest.json").write_text("{"), "manifest.json is not a manifest"),
    ],
)
def test_a_tampered_file_is_refused_with_its_name(repository, deployment, spoil, file):
    _publish(repository, 1, 2)
    spoil(repository)
    before = _state(repository)
    with pytest.raises(Tampered, match=file):
        switch_to(deployment, NAME, 1)
    assert _state(repository) == before


def test_rollback_goes_to_the_previous_version_and_back(repository, deployment):
    _publish(repository, 1, 2, 3)
    after = _state(repository)
    assert switch_to(deployment, NAME, None) == 2
    assert ModelRepository(repository).pinned_members(NAME) == {"mood_pre": 1, "mood_onnx": 2}
    assert policy_versions(ModelRepository(repository).config("mood_onnx")) == [2]
    assert switch_to(deployment, NAME, 1) == 1
    with pytest.raises(PublishFailed, match=r"no version before 1.*rollback mood --to 2"):
        switch_to(deployment, NAME, None)
    with pytest.raises(PublishFailed, match="no version 9: it has 1, 2, 3"):
        switch_to(deployment, NAME, 9)
    assert switch_to(deployment, NAME, 3) == 3
    assert _state(repository) == after


def test_versions_say_which_one_is_active(repository, deployment):
    _publish(repository, 1, 2)
    switch_to(deployment, NAME, 1)
    published = ModelRepository(repository).published_versions(NAME)
    numbers = [(version.number, version.is_active) for version in published]
    assert numbers == [(1, True), (2, False)]
    assert published[1].members == {"mood_pre": 1, "mood_onnx": 2}


def test_prune_keeps_the_newest_and_the_active_and_what_they_need(repository, deployment):
    _publish(repository, 1, 2, 3, 4)
    switch_to(deployment, NAME, 1)
    deleted, freed = prune(deployment, NAME, keep=1)
    assert deleted == ["mood/2", "mood/3", "mood_onnx/2", "mood_onnx/3"]
    assert freed > 0
    assert ModelRepository(repository).versions("mood_onnx") == [1, 4]
    assert switch_to(deployment, NAME, 4) == 4
    assert prune(deployment, NAME, keep=1)[0] == ["mood/1", "mood_onnx/1"]
    assert prune(deployment, NAME, keep=1) == ([], 0)
    assert _publish(repository, 9) == 5


@pytest.mark.parametrize("removals", range(4))
def test_a_prune_that_was_killed_is_gone_on_with(repository, deployment, monkeypatch, removals):
    _publish(repository, 1, 2, 3)
    remove, done = ModelRepository.remove_folder, []

    def killed(self, folder):
        if len(done) == removals:
            raise KeyboardInterrupt
        done.append(folder)
        remove(self, folder)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ModelRepository, "remove_folder", killed)
        prune(deployment, NAME, keep=1)
    prune(deployment, NAME, keep=1)
    assert ModelRepository(repository).versions(NAME) == [3]
    assert ModelRepository(repository).versions("mood_onnx") == [3]


def test_prune_keeps_what_a_server_still_serves(repository):
    """A server that a publication did not reach."""
    _publish(repository, 0, 10, 20)
    server = Mock(served=lambda model: [1], address="127.0.0.1:1")
    deleted, _ = prune(Deployment(ModelRepository(repository), [server]), NAME, keep=1)
    assert deleted == ["mood/2", "mood_onnx/2"]
    assert ModelRepository(repository).versions(NAME) == [1, 3]


def test_the_pins_of_a_pipeline_that_was_put_there_by_hand_are_saved(repository, deployment):
    _publish(repository, 1)
    for name in ("manifest.json", "config.pbtxt"):
        (repository / NAME / "1" / name).unlink()
    assert _publish(repository, 2) == 2
    assert switch_to(deployment, NAME, 1) == 1
    assert ModelRepository(repository).pinned_members(NAME) == {"mood_pre": 1, "mood_onnx": 1}


def test_two_publishers_do_not_collide(repository):
    staged = stage(repository, 1)
    with (
        ModelRepository(repository).lock("publish other"),
        pytest.raises(RepositoryBusy, match="publish other"),
        ModelRepository(repository).lock("second", wait_s=0.2),
    ):
        pass
    assert publish_staged(staged, repository) == 1


def test_a_full_disk_is_reported_with_the_numbers(repository, monkeypatch):
    staged = stage(repository, 1)
    monkeypatch.setattr("serving.publish.preflight.DISK_MARGIN_BYTES", 1 << 60)
    with pytest.raises(PublishFailed, match=r"MiB free.*tidegate prune"):
        publish_staged(staged, repository)
    assert ModelRepository(repository).active_version(NAME) == 0
    assert list(staging_folder(repository).glob("journal*")) == []


def test_leftovers_of_a_killed_process_are_removed_and_work_in_progress_is_not(
    repository, tmp_path
):
    _publish(repository, 1)
    staging = staging_folder(repository)
    dead = subprocess.Popen(["true"])
    dead.wait()
    kept = {
        ModelRepository(repository).staged_path("mood"),
        staging / f"model-{dead.pid}-abc",  # a name like any other, of today
        staging / "lock",
    }
    killed = staging / f"file+{os.getpid()}.0a1b2c3d+abc"  # of a container with our pid
    for path in (*kept, killed, staging / f"trash+{dead.pid}+abc"):
        path.mkdir() if path.name != "lock" else path.touch()
    old = staging / "mood-forgotten"
    old.mkdir()
    os.utime(old, (0, 0))
    (staging / "intent+held+0a1b2c3d").mkdir()
    with held_folder(staging, "mood") as work:
        clear_up(ModelRepository(repository))
        left = {path for path in staging.iterdir() if not path.name.startswith("staged-")}
    assert left == {*kept, work}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"new": 1}', '{"pipeline": "mood", "new": []}', b"\xff\xfe", None]
)
def test_a_journal_that_cannot_be_read_is_set_aside_and_reported(repository, text):
    """None: a folder in its place. The active version is still served, and the next publisher goes
    on."""
    _publish(repository, 1)
    path = staging_folder(repository) / "journal-mood.json"
    if text is None:
        path.mkdir()
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    messages = []
    clear_up(ModelRepository(repository), report=messages.append)
    assert len(messages) == 1
    assert "journal-mood.json cannot be read" in messages[0]
    assert (path.with_name("broken-journal-mood.json")).exists()
    assert not path.exists()
    assert _publish(repository, 2) == 2


def test_nothing_is_cleared_up_if_nothing_was_published(tmp_path):
    clear_up(ModelRepository(tmp_path / "model_repository"))
    assert list(tmp_path.iterdir()) == []
