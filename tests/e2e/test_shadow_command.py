"""``tidegate shadow`` on a running stack: start, report, a canary beside it, end."""

import json

import httpx
import pytest

from tests.running import launch, stop, wait_ready, wait_until
from tests.serving.small_pipeline import NAME, publish_staged, stage
from tidegate.app.shadows import LEAST_COMPARED

SHADOW = f"{NAME}.v2"
# Nobody calls while versions change: no old one need stay loaded.
AT_ONCE = ("--grace", "0")


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A stack that serves version 1, which adds 0; version 2, which adds 10, is on disk."""
    home = tmp_path_factory.mktemp("shadow")
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


def _report(running) -> tuple[int, dict]:
    run = running.tidegate("shadow", NAME, "--json")
    return run.returncode, json.loads(run.stdout)


def _ask(running, count: int) -> None:
    with httpx.Client(base_url=running.url, headers=running.headers, timeout=30) as client:
        for _ in range(count):
            response = client.post(f"/v1/{NAME}", json={"x": 0})
            assert response.status_code == 200 and response.json()["score"] == 0


def test_a_shadow_from_its_start_to_its_end(running):
    run = running.tidegate("shadow", NAME)
    assert run.returncode == 3 and "has no shadow in this gateway" in run.stderr

    run = running.tidegate("shadow", NAME, "--percent", "100", "--json")
    assert run.returncode == 0, run.stderr
    started = json.loads(run.stdout)
    assert (started["shadow"], started["percent"]) == (SHADOW, 100)
    wait_until(lambda: SHADOW in _models(running), 30, "the gateway knows it")
    code, report = _report(running)
    assert (code, report["verdict"], report["compared"]) == (3, "undecided", 0)

    _ask(running, 20)
    wait_until(lambda: _report(running)[1]["differs"] > 0, 30, "they are compared")
    code, report = _report(running)
    assert (code, report["verdict"]) == (1, "differs")
    assert report["shadow_p50_ms"] > 0 and report["primary_p50_ms"] > 0
    run = running.tidegate("shadow", NAME)
    assert run.returncode == 1 and " differ, " in run.stdout

    # The shadow may get callers too, and stays when they are taken away.
    run = running.tidegate("canary", NAME, "--weight", "10")
    assert run.returncode == 0, run.stderr
    run = running.tidegate("canary", NAME, "--weight", "0")
    assert run.returncode == 0, run.stderr
    assert SHADOW in _models(running)

    run = running.tidegate("shadow", NAME, "--percent", "0", "--json")
    assert run.returncode == 0, run.stderr
    ended = json.loads(run.stdout)
    assert (ended["shadow"], ended["gone"]) == ("", [SHADOW])
    wait_until(lambda: SHADOW not in _models(running), 30, "it is unloaded")
    assert running.tidegate("shadow", NAME, "--percent", "0").returncode == 1  # there is none


def test_a_shadow_that_agrees(running):
    """Version 3 is a thousandth off, which is within the tolerance."""
    near = str(stage(running.home / "again", 0.001))
    run = running.tidegate("publish", near, "--accept-no-manifest", "a test", *AT_ONCE)
    assert run.returncode == 0, run.stderr
    assert running.tidegate("rollback", NAME, "--to", "1", *AT_ONCE).returncode == 0
    run = running.tidegate("shadow", NAME, "--percent", "100", "--version", "3")
    assert run.returncode == 0, run.stderr
    wait_until(lambda: f"{NAME}.v3" in _models(running), 30, "the gateway knows it")

    def compared() -> bool:
        _ask(running, 50)
        return _report(running)[1]["compared"] >= LEAST_COMPARED

    wait_until(compared, 60, "enough are compared")
    code, report = _report(running)
    assert (code, report["verdict"], report["failed"]) == (0, "agrees", 0)
    run = running.tidegate("canary", NAME, "--weight", "10", "--version", "2")
    assert run.returncode == 1 and f"{NAME}.v3 is the shadow of {NAME}" in run.stderr
    run = running.tidegate("shadow", NAME, "--percent", "10", "--version", "2")
    assert run.returncode == 1 and "there is only one at a time" in run.stderr


def _models(running) -> set[str]:
    url = f"http://127.0.0.1:{running.admin_port}/admin/models"
    return {model["name"] for model in httpx.get(url, headers=running.headers).json()["models"]}
