"""A canary through the gateway: its share of the callers, stickiness, promotion."""

import httpx
import pytest

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


def _is_routed(running, keys):
    return len({_score(running, key) for key in keys}) == 2
