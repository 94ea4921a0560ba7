"""The verbs on a running stack, as an operator types them, without any failed request."""

import json
import time
import tomllib

import httpx
import pytest

from tests.back_to_back import back_to_back
from tests.running import launch, stop, wait_ready
from tests.serving.small_pipeline import NAME, publish_staged, stage


@pytest.fixture(scope="module")
def own_stack(tmp_path_factory):
    """A stack that serves the small pipeline, so that nothing has to be converted."""
    home = tmp_path_factory.mktemp("own")
    repository = home / "model_repository"
    publish_staged(stage(repository, 0), repository)
    running = launch(home, NAME)
    wait_ready(running)
    yield running
    assert stop(running) == 0


@pytest.fixture
def other(tmp_path):
    """Another version, as a different machine would deliver it."""
    return stage(tmp_path / "elsewhere", 10)


def _calling(stack):
    """A client that calls through the gateway back to back; the count of each (status, text)."""

    def call(client: httpx.Client) -> tuple[int, str]:
        response = client.post(f"{stack.url}/v1/{NAME}", json={"x": 0}, headers=stack.headers)
        return response.status_code, response.text

    return back_to_back(call, clients=1)


def test_publish_versions_rollback_and_prune_under_load(own_stack, other):
    quick = ("--grace", "0.2")
    with _calling(own_stack) as calls:
        run = own_stack.tidegate("publish", str(other), "--accept-no-manifest", "a test", *quick)
        assert run.returncode == 0, run.stderr
        assert "mood: version 2 serves from model_repository/" in run.stdout
        assert "the candidate answers its golden sample" in run.stdout
        assert own_stack.tidegate("rollback", NAME, *quick).returncode == 0
        lines = own_stack.tidegate("versions", NAME).stdout.splitlines()
        assert [line[:3] for line in lines[:2]] == ["* 1", "  2"]
        assert lines[2:] == [f"  server {own_stack.grpc_address} serves 1"]
        assert "mood_pre/1 mood_onnx/2" in lines[1]
        assert own_stack.tidegate("rollback", NAME, "--to", "2", *quick).returncode == 0
        assert own_stack.tidegate("publish", NAME, *quick).returncode == 0
        pruned = own_stack.tidegate("prune", NAME, "--keep", "1")
        assert "deleted mood/1, mood_onnx/1" in pruned.stdout
    assert sum(calls.counts.values()) > 100
    assert {status for status, _ in calls.counts} == {200}
    assert len(calls.counts) == 2  # the old version's answer and the new one's
    assert "died" not in own_stack.output
    listed = json.loads(own_stack.tidegate("versions", NAME, "--json").stdout)
    assert [version["number"] for version in listed] == [2]
    assert listed[0]["manifest"]["note"] == "came without a manifest: a test"
    assert own_stack.tidegate("lint", "--cores", "8").stdout == "no findings\n"


def test_a_canary_is_weighted_and_promoted_without_a_failed_request(own_stack, tmp_path):
    quick = ("--grace", "5")  # the gateway rereads its file within a second
    other, policy = stage(tmp_path / "elsewhere", 20), own_stack.home / ".tidegate" / "gateway.toml"
    accept = ("--accept-no-manifest", "a test")
    assert own_stack.tidegate("publish", str(other), *accept, "--grace", "0").returncode == 0
    newest = json.loads(own_stack.tidegate("versions", NAME, "--json").stdout)[-1]["number"]
    assert own_stack.tidegate("rollback", NAME, "--grace", "0").returncode == 0
    with _calling(own_stack) as calls:
        run = own_stack.tidegate("canary", NAME, "--weight", "10", *quick)
        assert run.returncode == 0, run.stderr
        assert tomllib.loads(policy.read_text())["routes"] == {NAME: {f"{NAME}.v{newest}": 10}}
        time.sleep(2)
        assert own_stack.tidegate("promote", NAME, *quick).returncode == 0
        assert "routes" not in tomllib.loads(policy.read_text())
    assert {status for status, _ in calls.counts} == {200}
    assert not (own_stack.home / "model_repository" / f"{NAME}.v{newest}").exists()
    assert own_stack.tidegate("promote", NAME).stderr.count("has no canary") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rollback", "nobody"], "there is no model 'nobody'"),
        (["rollback", NAME, "--to", "99"], "has no version 99"),
        (["publish", "nobody"], "there is no model 'nobody'"),
        (["versions", "nobody"], "there is no model 'nobody'"),
        (["prune", "nobody"], "there is no model 'nobody'"),
    ],
)
def test_mistakes_are_one_line(own_stack, arguments, message):
    run = own_stack.tidegate(*arguments)
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert message in run.stderr
