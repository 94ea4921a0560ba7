"""One source for each fact: the routed canary is promoted, running servers are found from any home,
and ``versions`` shows what the servers serve."""

import collections
import json
import os
import tomllib
from dataclasses import dataclass

import httpx
import pytest
from click.testing import CliRunner

from serving.errors import ServingError
from serving.publish.deployment import Deployment
from serving.publish.replica import connected
from serving.publish.versions import switch_to
from serving.repository.model_repository import ModelRepository
from serving.triton.servers import servers_of
from tests.back_to_back import PAUSE_S, back_to_back
from tests.running import launch, stop, wait_ready, wait_until
from tests.serving.small_pipeline import NAME, publish_staged, stage
from tidegate.cli import cli


@pytest.fixture(scope="module")
def own_stack(tmp_path_factory):
    """A stack of two workers that serves version 1 of 4; version N adds 10 * (N - 1). It was
    started with ``mood``, with version 3 as a canary for everyone."""
    home = tmp_path_factory.mktemp("one_place")
    repository = home / "model_repository"
    for add in (0, 10, 20, 30):
        publish_staged(stage(repository, add), repository)
    switch_to(Deployment(ModelRepository(repository)), NAME, 1)
    started = _run(home, "canary", NAME, "--version", "3", "--weight", "100")
    assert started.returncode == 0, started.stderr
    assert "no server was notified" in started.stdout
    running = launch(home, NAME, TIDEGATE_WORKERS="2")
    try:
        wait_ready(running)
        with httpx.Client(headers=running.headers, timeout=60) as running.client:
            yield running
    finally:
        assert stop(running) == 0, running.output


@dataclass
class Run:
    returncode: int
    stdout: str
    stderr: str


def _run(home, *arguments, **variables):
    """Run the command line in this process: starting another takes longer than the test."""
    ours = {name: None for name in os.environ if name.startswith("TIDEGATE_")}
    result = CliRunner().invoke(
        cli, list(arguments), env={**ours, "TIDEGATE_HOME": str(home), **variables}
    )
    error = result.exception
    assert error is None or isinstance(error, ServingError), result.exc_info
    return Run(1 if error else 0, result.stdout, str(error or ""))


def _done(own_stack, *arguments, **variables):
    run = _run(own_stack.home, *arguments, **variables)
    assert run.returncode == 0, run.stderr
    return run.stdout


def _routes(own_stack):
    return tomllib.loads((own_stack.home / ".tidegate" / "gateway.toml").read_text()).get(
        "routes", {}
    )


def _ask(own_stack):
    return own_stack.client.post(f"{own_stack.url}/v1/{NAME}", json={"x": 0})


def _score(own_stack):
    response = _ask(own_stack)
    assert response.status_code == 200, response.text
    return response.json()["score"]


def _loaded(own_stack):
    """The canaries that Triton has loaded."""
    servers = servers_of(own_stack.home / ".tidegate", own_stack.home / "model_repository")
    with connected(servers) as (replica,):
        return {
            entry.name
            for entry in replica.control.index()
            if entry.state == "READY" and entry.name.startswith(f"{NAME}.v")
        }


def test_a_start_that_names_only_the_pipeline_serves_its_canary(own_stack):
    wait_until(lambda: _score(own_stack) == 20, 30, "the canary answers everyone")
    assert _loaded(own_stack) == {"mood.v3"}
    output = _done(own_stack, "versions", NAME)
    assert "canary mood.v3: 100 % of the callers of mood" in output
    assert f"server {own_stack.grpc_address} serves 1\n" in output
    assert "mood.v3 was removed" in _done(own_stack, "canary", NAME, "--weight", "0")


def test_the_routed_canary_is_promoted_and_a_second_one_is_refused(own_stack):
    _done(own_stack, "canary", NAME, "--version", "2", "--weight", "50")
    second = _run(own_stack.home, "canary", NAME, "--version", "4", "--weight", "10")
    assert second.returncode == 1
    assert (
        "mood.v2 gets 50 % of the callers of mood, and only one canary runs at a time"
        in second.stderr
    )
    assert "tidegate canary mood --weight 0 ends it" in second.stderr
    assert _loaded(own_stack) == {"mood.v2"}
    assert _routes(own_stack) == {NAME: {"mood.v2": 50}}
    assert "version 2 serves everyone" in _done(own_stack, "promote", NAME)
    assert ModelRepository(own_stack.home / "model_repository").active_version(NAME) == 2
    assert _routes(own_stack) == {}
    assert _loaded(own_stack) == set()
    _done(own_stack, "rollback", NAME, "--to", "1", "--grace", "0")


def test_an_unrouted_canary_is_not_promoted_and_the_next_one_replaces_it(own_stack):
    _done(own_stack, "canary", NAME, "--version", "4", "--weight", "10")
    (own_stack.home / ".tidegate" / "gateway.toml").write_text("# by hand\n")
    refused = _run(own_stack.home, "promote", NAME)
    assert refused.returncode == 1
    assert "mood.v4 is only loaded" in refused.stderr
    output = _done(own_stack, "canary", NAME, "--version", "2", "--weight", "10")
    assert "mood.v4 was loaded but got no traffic: it was removed" in output
    assert _loaded(own_stack) == {"mood.v2"}
    _done(own_stack, "canary", NAME, "--weight", "0")


def test_a_weight_per_request_splits_one_caller(own_stack):
    output = _done(
        own_stack, "canary", NAME, "--version", "2", "--weight", "50", "--per", "request"
    )
    assert "mood.v2 gets 50 % of the requests of mood" in output
    wait_until(
        lambda: len({_score(own_stack) for _ in range(8)}) == 2, 30, "both answer one caller"
    )
    scores = collections.Counter(_score(own_stack) for _ in range(100))
    assert set(scores) == {0, 10}
    assert 25 < scores[10] < 75
    # Another weight keeps the unit, and ``caller`` is all or nothing for one key.
    assert "20 % of the requests" in _done(own_stack, "canary", NAME, "--weight", "20")
    _done(own_stack, "canary", NAME, "--weight", "50", "--per", "caller")
    wait_until(
        lambda: len({_score(own_stack) for _ in range(20)}) == 1, 30, "one version for one caller"
    )


def test_without_a_grace_period_no_request_is_lost(own_stack):
    def call(client):
        response = client.post(
            f"{own_stack.url}/v1/{NAME}", json={"x": 0}, headers=own_stack.headers
        )
        return response.status_code

    with back_to_back(call, pause_s=PAUSE_S) as calls:
        _done(own_stack, "canary", NAME, "--weight", "100", "--per", "request", "--grace", "0")
        _done(own_stack, "canary", NAME, "--weight", "0", "--grace", "0")
    assert set(calls.counts) == {200}
    assert calls.counts[200] > 20


def test_another_home_finds_the_server_and_its_gateway(own_stack, tmp_path):
    environment = {"TIDEGATE_REPOSITORY": str(own_stack.home / "model_repository")}
    run = _run(tmp_path, "rollback", NAME, "--to", "3", "--grace", "0", **environment)
    assert run.returncode == 0, run.stderr
    assert f"served by {own_stack.grpc_address}" in run.stdout
    assert _score(own_stack) == 20
    run = _run(tmp_path, "canary", NAME, "--version", "4", "--weight", "100", **environment)
    assert run.returncode == 0, run.stderr
    assert _routes(own_stack) == {NAME: {"mood.v4": 100}}
    wait_until(lambda: _score(own_stack) == 30, 30, "the canary of another home")
    assert _run(tmp_path, "promote", NAME, **environment).returncode == 0
    assert _routes(own_stack) == {}
    versions = json.loads(_run(tmp_path, "versions", NAME, "--json", **environment).stdout)
    assert {
        version["number"]: version["served_by"] for version in versions if version["served_by"]
    } == {4: [own_stack.grpc_address]}


def test_a_change_on_disk_only_is_reported_and_a_server_can_be_named(own_stack, tmp_path):
    """As with a server in another container, whose record is not visible."""
    repository = own_stack.home / "model_repository"
    hidden = own_stack.home / ".model_repository.staging" / "servers"
    hidden.rename(hidden.with_name("lock-not"))
    environment = {"TIDEGATE_REPOSITORY": str(repository)}
    try:
        run = _run(tmp_path, "rollback", NAME, "--to", "2", **environment)
        assert run.returncode == 0, run.stderr
        assert "no server was notified" in run.stdout
        assert "every server" not in run.stdout
        assert "version 2 is the active one" in run.stdout
        assert "no running server was found" in run.stdout
        assert _score(own_stack) == 30
        output = _done(own_stack, "versions", NAME)
        assert f"server {own_stack.grpc_address} serves 4, but 2 is active on disk" in output
        key = {"TIDEGATE_TRITON_KEY_FILE": str(own_stack.home / ".tidegate" / "triton.key")}
        named = ("publish", NAME, "--grace", "0", "--server", own_stack.grpc_address)
        run = _run(tmp_path, *named, **environment, **key)
        assert run.returncode == 0, run.stderr
        assert "mood: version 2 serves from" in run.stdout
        # Without a grace the old version is gone before the gateway has read of it.
        wait_until(lambda: _ask(own_stack).status_code == 200, 30, "version 2 is served")
        assert _score(own_stack) == 10
        nobody = _run(tmp_path, "publish", NAME, "--server", "127.0.0.1:1", **environment, **key)
        assert nobody.returncode == 1
        assert "no Triton answers at 127.0.0.1:1" in nobody.stderr
    finally:
        hidden.with_name("lock-not").rename(hidden)
