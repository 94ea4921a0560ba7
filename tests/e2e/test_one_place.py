"""One place for one fact: what is routed is promoted, what runs is told whichever home asks, and
``versions`` says what the servers serve."""

import collections
import json
import os
import threading
import tomllib
from dataclasses import dataclass

import httpx
import pytest
from click.testing import CliRunner

from serving.deployment import Deployment
from serving.errors import ServingError
from serving.publish import publish
from serving.replica import connected
from serving.repository import active_version
from serving.servers import servers_of
from serving.versions import switch_to
from tests.running import launch, stop, wait_ready, wait_until
from tests.serving.small_pipeline import MODELS, NAME, stage
from tidegate.cli import cli


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A stack of two workers that serves version 1 of 4; version N adds 10 * (N - 1). It was told
    to serve ``mood``, and there is a canary of version 3 for everybody from the start."""
    home = tmp_path_factory.mktemp("one_place")
    repository = home / "model_repository"
    for add in (0, 10, 20, 30):
        publish(stage(repository, add), repository, MODELS)
    switch_to(Deployment(repository), NAME, 1)
    begun = _run(home, "canary", NAME, "--version", "3", "--weight", "100")
    assert begun.returncode == 0, begun.stderr
    assert "no server was notified" in begun.stdout
    running = launch(home, NAME, TIDEGATE_WORKERS="2")
    try:
        wait_ready(running, 120)
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
    """The command line in this process: a new one takes longer to start than what is tested."""
    ours = {name: None for name in os.environ if name.startswith("TIDEGATE_")}
    found = CliRunner().invoke(
        cli, list(arguments), env={**ours, "TIDEGATE_HOME": str(home), **variables}
    )
    error = found.exception
    assert error is None or isinstance(error, ServingError), found.exc_info
    return Run(1 if error else 0, found.stdout, str(error or ""))


def _done(own, *arguments, **variables):
    run = _run(own.home, *arguments, **variables)
    assert run.returncode == 0, run.stderr
    return run.stdout


def _routes(own):
    return tomllib.loads((own.home / ".tidegate" / "gateway.toml").read_text()).get("routes", {})


def _ask(own):
    response = own.client.post(f"{own.url}/v1/{NAME}", json={"x": 0})
    assert response.status_code == 200, response.text
    return response.json()["score"]


def _loaded(own):
    """The canaries that Triton has loaded."""
    servers = servers_of(own.home / ".tidegate", own.home / "model_repository")
    with connected(servers) as (replica,):
        return {
            entry.name
            for entry in replica.control.index()
            if entry.state == "READY" and entry.name.startswith(f"{NAME}.v")
        }


def test_a_canary_is_served_by_a_start_that_names_the_pipeline_only(own):
    wait_until(lambda: _ask(own) == 20, 20, "the canary answers everybody")
    assert _loaded(own) == {"mood.v3"}
    shown = _done(own, "versions", NAME)
    assert "canary mood.v3: 100 % of the callers of mood" in shown
    assert f"server {own.grpc_address} serves 1\n" in shown
    assert "mood.v3 was removed" in _done(own, "canary", NAME, "--weight", "0")


def test_what_is_routed_is_promoted_and_a_second_canary_is_refused(own):
    _done(own, "canary", NAME, "--version", "2", "--weight", "50")
    second = _run(own.home, "canary", NAME, "--version", "4", "--weight", "10")
    assert second.returncode == 1
    assert (
        "mood.v2 gets 50 % of the callers of mood, and only one canary runs at a time"
        in second.stderr
    )
    assert "tidegate canary mood --weight 0 ends it" in second.stderr
    assert _loaded(own) == {"mood.v2"}
    assert _routes(own) == {NAME: {"mood.v2": 50}}
    assert "version 2 serves everyone" in _done(own, "promote", NAME)
    assert active_version(own.home / "model_repository", NAME) == 2
    assert _routes(own) == {}
    assert _loaded(own) == set()
    _done(own, "rollback", NAME, "--to", "1", "--grace", "0")


def test_a_canary_that_nobody_is_sent_to_is_not_promoted_and_the_next_ends_it(own):
    _done(own, "canary", NAME, "--version", "4", "--weight", "10")
    (own.home / ".tidegate" / "gateway.toml").write_text("# by hand\n")
    refused = _run(own.home, "promote", NAME)
    assert refused.returncode == 1
    assert "mood.v4 is only loaded" in refused.stderr
    said = _done(own, "canary", NAME, "--version", "2", "--weight", "10")
    assert "mood.v4 was loaded but got no traffic: it was removed" in said
    assert _loaded(own) == {"mood.v2"}
    _done(own, "canary", NAME, "--weight", "0")


def test_a_weight_per_request_shares_out_one_caller(own):
    said = _done(own, "canary", NAME, "--version", "2", "--weight", "50", "--per", "request")
    assert "mood.v2 gets 50 % of the requests of mood" in said
    wait_until(lambda: len({_ask(own) for _ in range(8)}) == 2, 20, "both answer one caller")
    found = collections.Counter(_ask(own) for _ in range(100))
    assert set(found) == {0, 10}
    assert 25 < found[10] < 75
    # Another weight keeps what it is a part of, and ``caller`` is all or nothing for one key.
    assert "20 % of the requests" in _done(own, "canary", NAME, "--weight", "20")
    _done(own, "canary", NAME, "--weight", "50", "--per", "caller")
    wait_until(lambda: len({_ask(own) for _ in range(20)}) == 1, 20, "one version for one caller")


def test_no_grace_at_all_loses_no_request(own):
    responses, stopped = collections.Counter(), threading.Event()

    def call():
        with httpx.Client(headers=own.headers, timeout=60) as client:
            while not stopped.is_set():
                response = client.post(f"{own.url}/v1/{NAME}", json={"x": 0})
                responses[response.status_code] += 1

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        _done(own, "canary", NAME, "--weight", "100", "--per", "request", "--grace", "0")
        _done(own, "canary", NAME, "--weight", "0", "--grace", "0")
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
    assert set(responses) == {200}
    assert responses[200] > 20


def test_another_home_finds_the_server_and_its_gateway(own, tmp_path):
    there = {"TIDEGATE_REPOSITORY": str(own.home / "model_repository")}
    run = _run(tmp_path, "rollback", NAME, "--to", "3", "--grace", "0", **there)
    assert run.returncode == 0, run.stderr
    assert f"served by {own.grpc_address}" in run.stdout
    assert _ask(own) == 20
    run = _run(tmp_path, "canary", NAME, "--version", "4", "--weight", "100", **there)
    assert run.returncode == 0, run.stderr
    assert _routes(own) == {NAME: {"mood.v4": 100}}
    wait_until(lambda: _ask(own) == 30, 20, "the canary of another home")
    assert _run(tmp_path, "promote", NAME, **there).returncode == 0
    assert _routes(own) == {}
    shown = json.loads(_run(tmp_path, "versions", NAME, "--json", **there).stdout)
    assert {each["number"]: each["served_by"] for each in shown if each["served_by"]} == {
        4: [own.grpc_address]
    }


def test_what_is_only_on_the_disk_is_told_so_and_a_server_may_be_named(own, tmp_path):
    """As with a server in another container: no record of it can be seen."""
    repository = own.home / "model_repository"
    hidden = own.home / ".model_repository.staging" / "servers"
    hidden.rename(hidden.with_name("lock-not"))
    there = {"TIDEGATE_REPOSITORY": str(repository)}
    try:
        run = _run(tmp_path, "rollback", NAME, "--to", "2", **there)
        assert run.returncode == 0, run.stderr
        assert "no server was notified" in run.stdout
        assert "every server" not in run.stdout
        assert "version 2 is the active one" in run.stdout
        assert "no running server was found" in run.stdout
        assert _ask(own) == 30
        shown = _done(own, "versions", NAME)
        assert f"server {own.grpc_address} serves 4, but 2 is active on disk" in shown
        key = {"TIDEGATE_TRITON_KEY_FILE": str(own.home / ".tidegate" / "triton.key")}
        named = ("publish", NAME, "--grace", "0", "--server", own.grpc_address)
        run = _run(tmp_path, *named, **there, **key)
        assert run.returncode == 0, run.stderr
        assert "mood: version 2 serves from" in run.stdout
        assert _ask(own) == 10
        nobody = _run(tmp_path, "publish", NAME, "--server", "127.0.0.1:1", **there, **key)
        assert nobody.returncode == 1
        assert "no Triton answers at 127.0.0.1:1" in nobody.stderr
    finally:
        hidden.with_name("lock-not").rename(hidden)
