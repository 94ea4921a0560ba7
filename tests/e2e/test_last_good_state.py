"""A refused gateway.toml is also refused by every later worker: the last good one stays in force,
one worker's death ends no other, and ``up`` says why a gateway ended."""

import hashlib
import shutil

import httpx
import psutil
import pytest

from tests.running import ROOT, launch, stop, wait_ready, wait_until

GOOD = '[tenants.default]\nmodels = ["identity*"]\n# end\n'
WRONG = "[tenants.default\nmodels = [\n"
VERSION = hashlib.sha256(GOOD.encode()).hexdigest()[:12]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("last_good")
    shutil.copytree(
        ROOT / "model_repository" / "identity_fp32", home / "model_repository" / "identity_fp32"
    )
    return home


@pytest.fixture(scope="module")
def running(home):
    """Two workers; the good policy was in force, and the file is invalid now."""
    running = launch(home, "identity_fp32", TIDEGATE_WORKERS="2")
    try:
        wait_ready(running)
        _put(home, GOOD)
        wait_until(lambda: _versions(running) == {VERSION}, 30, "the good policy")
        _put(home, WRONG)
        wait_until(lambda: _log(home).count("stays in force") >= 2, 30, "both workers refuse it")
        yield running
    finally:
        assert stop(running) == 0, running.output


def _put(home, text):
    policy = home / ".tidegate" / "gateway.toml"
    policy.with_suffix(".new").write_text(text)
    policy.with_suffix(".new").replace(policy)


def _log(home):
    return (home / ".tidegate" / "logs" / "gateway.log").read_text()


def _main(running):
    return next(p for p in running.family() if p.cmdline()[-2:] == ["-m", "gateway"])


def _workers(running):
    return [p for p in _main(running).children() if "spawn_main" in " ".join(p.cmdline())]


def _versions(running):
    """The policy versions that eight new connections see: the workers take them in turn."""
    url = f"http://127.0.0.1:{running.admin_port}/admin/policy"
    versions = set()
    for _ in range(8):
        try:
            versions.add(httpx.get(url, headers=running.headers, timeout=30).json().get("version"))
        except httpx.HTTPError:
            versions.add("none")
    return versions


def _status(running):
    return running.get("/v2/models/identity_fp32").status_code


def test_the_death_of_a_worker_ends_no_other_and_its_replacement_serves_the_last_good(running):
    first, second = _workers(running)
    refused = _log(running.home).count("stays in force")
    first.kill()
    wait_until(lambda: _log(running.home).count("stays in force") > refused, 30, "a replacement")
    wait_until(lambda: _versions(running) == {VERSION}, 30, "the last good policy")
    assert second in _workers(running)
    assert len(_workers(running)) == 2
    assert _status(running) == 200


def test_a_replacement_that_cannot_start_does_not_end_the_others(running):
    (saved,) = (running.home / ".tidegate").glob("policy.*.last_good")
    data = saved.read_bytes()
    first, second = _workers(running)
    saved.write_bytes(b"no policy")
    try:
        first.kill()
        wait_until(lambda: "cannot start (see above)" in _log(running.home), 30, "a failed start")
        assert second.is_running()
        assert _status(running) == 200
    finally:
        saved.write_bytes(data)
    wait_until(lambda: len(_workers(running)) == 2, 30, "the next attempt")
    wait_until(lambda: _versions(running) == {VERSION}, 30, "the last good policy")
    assert second in _workers(running)


def test_a_gateway_that_is_killed_leaves_no_worker_and_comes_back_with_the_last_good(running):
    main, workers = _main(running), _workers(running)
    main.kill()
    psutil.wait_procs(workers, timeout=30)
    assert not [worker for worker in workers if worker.is_running()]
    wait_until(lambda: "ended unexpectedly (killed by SIGKILL" in running.output, 30, "a reason")
    wait_until(lambda: _versions(running) == {VERSION}, 60, "the last good policy")


def test_after_a_full_restart_the_last_good_policy_serves_or_up_says_why_not(home, running):
    assert stop(running) == 0, running.output
    ports = [running.gateway_port, running.http_port, running.grpc_port, running.metrics_port]
    again = launch(home, "identity_fp32", ports=ports)
    try:
        wait_ready(again)
        assert _versions(again) == {VERSION}
        assert "line 1: " in again.output
        assert "the last good policy is in force instead" in again.output
    finally:
        assert stop(again) == 0, again.output
    (saved,) = (home / ".tidegate").glob("policy.*.last_good")
    saved.unlink()
    refused = launch(home, "identity_fp32", ports=ports)
    assert refused.process.wait(300) == 1
    assert "the gateway ended (exit code 2; its log says: gateway: " in refused.output
    assert "gateway.toml line 1" in refused.output
