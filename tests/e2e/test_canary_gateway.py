"""A canary through the gateway: its share of the callers, stickiness, promotion."""

import itertools
import json
import sys

import httpx
import pytest

from tests.back_to_back import back_to_back
from tests.running import launch, stop, wait_ready, wait_until
from tests.serving.small_pipeline import NAME, publish_staged, stage
from tidegate.app.key_store import KeyStore

# Nobody calls meanwhile: no old version need stay loaded.
AT_ONCE = ("--grace", "0")


@pytest.fixture(scope="module")
def stack_with_two_versions(tmp_path_factory):
    """A stack that serves version 1, which adds 0, and has version 2, which adds 10, on disk."""
    home = tmp_path_factory.mktemp("canary")
    repository = home / "model_repository"
    publish_staged(stage(repository, 0), repository)
    running = launch(home, NAME)
    try:
        wait_ready(running)
        other = str(stage(home / "elsewhere", 10))
        run = running.tidegate("publish", other, "--accept-no-manifest", "a test", *AT_ONCE)
        assert run.returncode == 0, run.stderr
        assert running.tidegate("rollback", NAME, *AT_ONCE).returncode == 0
        yield running
    finally:
        assert stop(running) == 0


def _score(running, key):
    response = httpx.post(
        f"{running.url}/v1/{NAME}",
        json={"x": 0},
        headers={"Authorization": f"Bearer {key}"},
        timeout=30,
    )
    assert response.status_code == 200, response.text
    return response.json()["score"]


def test_callers_are_split_and_stay_on_their_version(stack_with_two_versions):
    state = stack_with_two_versions.home / ".tidegate"
    store = KeyStore(state / "keys.toml", state / "pepper")
    # That all get the same version is one draw in eight million.
    keys = [store.create(f"app{number}")[1] for number in range(24)]
    run = stack_with_two_versions.tidegate("canary", NAME, "--weight", "50")
    assert run.returncode == 0, run.stderr
    canary = f"{NAME}.v2"
    wait_until(
        lambda: (
            canary in stack_with_two_versions.get("/v1/models").text
            or _is_routed(stack_with_two_versions, keys)
        ),
        30,
        "the route",
    )
    first = [_score(stack_with_two_versions, key) for key in keys]
    again = [_score(stack_with_two_versions, key) for key in keys]
    assert first == again
    assert set(first) == {0, 10}, "all got the same version"
    # To clients it is not a model of its own.
    assert canary not in stack_with_two_versions.get("/v1/models").text
    assert stack_with_two_versions.post(f"/v1/{canary}", json={"x": 0}).status_code == 404
    run = stack_with_two_versions.tidegate("promote", NAME)
    assert run.returncode == 0, run.stderr
    wait_until(
        lambda: len({_score(stack_with_two_versions, key) for key in keys}) == 1,
        30,
        "everyone is moved",
    )
    assert _score(stack_with_two_versions, keys[0]) == 10


# Fails where x is 13.
FAILS = "self._number = lambda value: value.dtype.type(10 / int(value.max() != 13))"
MOST_REQUESTS = 8000


def _verdict(running):
    """The exit code, and what --json says."""
    run = running.tidegate("canary", NAME, "--verdict", "--json")
    assert run.returncode in (0, 1, 3), run.stderr
    return run.returncode, json.loads(run.stdout)


def test_a_canary_without_traffic_is_undecided_and_one_that_fails_five_percent_is_rolled_back(
    stack_with_two_versions,
):
    """argo-rollouts #1905, flagger #1035 and #1011: without traffic a canary failed, or went on all
    the same; argo-rollouts #1411: a failed analysis did not stop it."""
    running = stack_with_two_versions
    worse = str(stage(running.home / "worse", 10, initialize=FAILS))
    for arguments in (
        ("publish", worse, "--accept-no-manifest", "a test", *AT_ONCE),
        ("rollback", NAME, *AT_ONCE),
        ("canary", NAME, "--version", "3", "--weight", "1", "--per", "request"),
    ):
        run = running.tidegate(*arguments)
        assert run.returncode == 0, run.stderr
    code, said = _verdict(running)
    assert (code, said["verdict"], said["canary_requests"]) == (3, "undecided", 0)
    run = running.tidegate("canary", NAME, "--version", "3", "--weight", "50")
    assert run.returncode == 0, run.stderr
    numbers = itertools.count()

    def ask(client):
        x = 13 if next(numbers) % 20 == 0 else 0
        return client.post(f"{running.url}/v1/{NAME}", json={"x": x}).status_code

    def connect():
        return httpx.Client(headers=running.headers, timeout=30)

    with back_to_back(ask, connect, 4) as calls:
        while code == 3:
            assert calls.sent < MOST_REQUESTS, said
            calls.more(400, 120)
            code, said = _verdict(running)
        ended = running.tidegate("canary", NAME, "--weight", "0", *AT_ONCE)
        assert ended.returncode == 0, ended.stderr
        before = calls.counts.copy()
        calls.more(200, 120)
        afterwards = calls.counts - before
    sys.stdout.write(
        f"\n{said['verdict']} after {said['canary_requests']} requests of the canary and "
        f"{said['stable_requests']} beside it: {said['reason']}; {calls.sent} sent, "
        f"{calls.counts[502]} failed\n"
    )
    assert (code, said["verdict"]) == (1, "roll back")
    assert set(calls.counts) == {200, 502}
    assert set(afterwards) == {200}, afterwards


def _is_routed(running, keys):
    return len({_score(running, key) for key in keys}) == 2
