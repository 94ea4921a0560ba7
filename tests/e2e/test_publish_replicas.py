"""Two Tritons, on one repository and on two; a publication reaches them one by one."""

import contextlib
import shutil
from dataclasses import replace

import pytest

from serving.errors import PublishFailed, RolloutStopped, Tampered
from serving.publish.deployment import Deployment
from serving.publish.import_pipeline import import_pipeline
from serving.publish.phases import PublishPhase
from serving.publish.publish import publish
from serving.publish.versions import switch_to
from serving.repository.model_repository import ModelRepository
from serving.triton.launch import TritonServer
from serving.triton.ports import Ports, free_ports
from serving.triton.servers import servers_of
from tests.running import wait_until
from tests.serving.small_pipeline import MODELS, NAME, stage
from tests.serving.small_server import online, serving_small_pipeline, under_load


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    with serving_small_pipeline(tmp_path_factory.mktemp("replicas")) as running:
        yield running


@pytest.fixture(scope="module")
def second(first):
    """A second server on the first one's repository."""
    options = replace(first.options, ports=Ports(*free_ports(3)))
    with TritonServer(options) as running:
        running.control.load(NAME)
        yield running
        running.stop(gently=False)


def test_both_servers_are_registered(first, second):
    servers = servers_of(first.options.work_dir, first.options.repository.path)
    assert {server.pid for server in servers} == {first.pid, second.pid}


def test_a_publication_rolls_over_both_and_loses_no_request(first, second):
    with under_load(first) as one, under_load(second) as two, online(first, count=2) as deployment:
        publish(ModelRepository(stage(deployment.repository.path, 10)), MODELS, deployment)
        wait_until(lambda: one.counts[10] and two.counts[10], 30, "both answer so")
    assert set(one.counts) == {0, 10}
    assert set(two.counts) == {0, 10}


def test_a_failing_server_stops_the_rollout_which_can_be_finished_or_undone(first, second):
    def lose_the_last(phase: PublishPhase, subject: str) -> None:
        if phase is PublishPhase.PINNED:
            refuse.enter_context(_refusing(deployment.replicas[-1]))

    with (
        contextlib.ExitStack() as refuse,
        online(first, count=2, report=lose_the_last) as deployment,
    ):
        last = deployment.replicas[-1].address
        with pytest.raises(RolloutStopped) as stopped:
            publish(ModelRepository(stage(deployment.repository.path, 20)), MODELS, deployment)
    before = first.options.repository.active_version(NAME) - 1
    assert f"1 of 2 servers serve it ({deployment.replicas[0].address}); {last}" in str(
        stopped.value
    )
    assert f"tidegate publish {NAME}" in str(stopped.value)
    assert f"tidegate rollback {NAME} --to {before}" in str(stopped.value)
    with under_load(first) as one, under_load(second) as two, online(first, count=2) as deployment:
        assert (
            switch_to(deployment, NAME, before + 1) == before + 1
        )  # what `tidegate publish NAME` does
        wait_until(lambda: one.counts[20] and two.counts[20], 30, "both answer so")
        assert switch_to(deployment, NAME, before) == before
        wait_until(lambda: one.counts[10] and two.counts[10], 30, "both answer so again")
    assert set(one.counts) == {20, 10}
    assert set(two.counts) == {20, 10}


@contextlib.contextmanager
def _refusing(replica):
    """A server that cannot be controlled any more."""
    load = replica.control.load

    def refuse(model: str) -> None:
        raise PublishFailed("it is gone")

    replica.control.load = refuse
    try:
        yield
    finally:
        replica.control.load = load


def test_a_pipeline_travels_to_another_repository_with_its_manifest(first, tmp_path):
    """As a copy of model_repository/NAME* from the machine that converted it."""
    folder = tmp_path / "elsewhere"
    shutil.copytree(first.options.repository.path, folder)
    with serving_small_pipeline(tmp_path / "other") as server, under_load(server) as calls:
        with online(server) as deployment:
            assert import_pipeline(folder, deployment) == (NAME, 2)
        wait_until(lambda: calls.counts[10] > 0, 30, "the new version's answers")
        assert set(calls.counts) == {0, 10}
        pinned = ModelRepository(folder).pinned_members(NAME)["mood_onnx"]
        (folder / "mood_onnx" / str(pinned) / "model.py").write_text("")
        with online(server) as deployment, pytest.raises(Tampered, match=r"model\.py has changed"):
            import_pipeline(folder, deployment)
    assert server.options.repository.active_version(NAME) == 2


def test_a_folder_without_a_manifest_is_refused_unless_a_reason_is_given(tmp_path):
    repository = tmp_path / "model_repository"
    staged = stage(repository, 1)
    for source in staged.glob("*.py"):
        source.unlink()
    deployment = Deployment(ModelRepository(repository))
    with pytest.raises(PublishFailed, match=r"no manifest.*--accept-no-manifest"):
        import_pipeline(staged, deployment)
    assert not ModelRepository(repository).active_version(NAME)
    assert import_pipeline(staged, deployment, accepted="a demonstration") == (NAME, 1)
    assert "a demonstration" in ModelRepository(repository).manifest(NAME, 1).note
