"""A model that loads, or does not: Triton's own reason is told, and nothing is waited for in vain.

The server's home has every character in its path that a shell would take for something else.
"""

import contextlib
import time

import psutil
import pytest

from serving import control, leftovers, loading, restart_backoff, watch
from serving.control import TritonControl
from serving.errors import ModelLoadFailed
from serving.launch import LaunchOptions, TritonServer
from serving.ports import Ports, free_ports
from serving.stubs import live_stubs
from serving.watch import Watcher
from tests.running import wait_until

ODD = """it's [a] "home" of $HOME (é) & ; 100 %"""
CONFIG = """backend: "python"
max_batch_size: 4
input [{ name: "x" data_type: TYPE_FP32 dims: [1] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [1] }]
"""
MODEL = """
import os, time
class TritonPythonModel:
    def initialize(self, args):
        {initialize}
    def execute(self, requests):
        return []
"""
WARM_UP = (
    'model_warmup [{ name: "w" batch_size: 1 inputs { key: "x" value: '
    "{ data_type: TYPE_FP32 dims: [1] zero_data: true } } }]"
)
ENOUGH_S = 60  # far below the limit of loading


def _add(server, name, initialize="pass", config=""):
    folder = server.options.repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(CONFIG + config)
    if initialize:
        (folder / "1" / "model.py").write_text(MODEL.format(initialize=initialize))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """In a folder that no shell takes as it is; ``said`` is what it told."""
    home = tmp_path_factory.mktemp("loading") / ODD
    repository = home / "model_repository"
    repository.mkdir(parents=True)
    said = []
    ports = Ports(*free_ports(3))
    options = LaunchOptions(repository, home / ".tidegate", ports)
    server = TritonServer(options, tell=said.append)
    server.said = said
    server.start()
    yield server
    server.stop(gently=False)
    server.control.close()
    assert not list(leftovers.FOLDER.glob(f"{server._prefix}*"))


def test_a_home_with_odd_characters_is_served_from(server):
    _add(server, "good")
    server.control.load("good")
    assert [each.state for each in server.control.index() if each.name == "good"] == ["READY"]


def test_a_config_that_is_refused_has_tritons_reason_and_the_log(server):
    _add(server, "refused", config="dynamic_batching { preferred_batch_size: [0] }")
    with pytest.raises(ModelLoadFailed) as failed:
        server.control.load("refused")
    assert "preferred size must be positive" in str(failed.value)
    assert f"(log: {server.log_file})" in str(failed.value)


def test_what_takes_long_is_told_and_its_limit_can_be_set(server, monkeypatch):
    monkeypatch.setattr(loading, "TELL_EVERY_S", 1.0)
    _add(server, "slow", "time.sleep(4)")
    with (
        TritonControl(server.control.address, server.key, 1.0) as hurried,
        pytest.raises(ModelLoadFailed, match=r"not loaded within 1 s: .*--load-timeout"),
    ):
        hurried.load("slow")
    server.control.load("slow")
    assert any(line.strip().startswith("still loading slow (") for line in server.said)


def test_a_reload_that_hangs_is_bounded_by_what_loads_took_and_the_next_one_works(
    server, tmp_path, monkeypatch
):
    """Whoever waits for it is the watcher: nothing else is healed meanwhile."""
    hang = tmp_path / "hang"
    line = f"time.sleep(3600 if os.path.exists({str(hang)!r}) else 0)"
    _add(server, "sleepy", line)
    monkeypatch.setattr(control, "LEAST_RELOAD_S", 3.0)
    server.control.load("sleepy")
    before = live_stubs(server.pid)
    hang.touch()
    began = time.monotonic()
    with pytest.raises(ModelLoadFailed, match=r"not reloaded within .* the next attempt gets"):
        server.control.load("sleepy", afresh=True)
    assert time.monotonic() - began < ENOUGH_S
    assert server.control._bound_s("sleepy") > 3.0
    hang.unlink()
    wait_until(lambda: live_stubs(server.pid) <= before, 20, "the end of what hung")
    server.control.load("sleepy", afresh=True)
    assert [each.state for each in server.control.index() if each.name == "sleepy"] == ["READY"]


def test_a_process_that_cannot_start_is_an_error_in_seconds(server):
    """Without model.py. Triton 2.51 never answers this load."""
    _add(server, "empty", initialize="")
    began = time.monotonic()
    with pytest.raises(ModelLoadFailed, match="Python model file not found") as failed:
        server.control.load("empty")
    assert time.monotonic() - began < ENOUGH_S
    assert "Triton waits" in str(failed.value)


class Watching:
    """A watcher that is called as ``tidegate up`` calls it, and what it told."""

    def __init__(self, server, *models):
        self.told = []
        self.watcher = Watcher(server, models, self.told.append)

    def until(self, condition, what):
        def is_so():
            self.watcher.check()
            return condition()

        wait_until(is_so, ENOUGH_S, f"{what}: {self.told}")

    def until_told(self, line):
        self.until(lambda: line in self.told, line)


@pytest.fixture
def watching(server):
    """``watching(models)``; nobody watches after the test."""
    with contextlib.ExitStack() as stack:

        def watch_over(*models):
            found = Watching(server, *models)
            stack.callback(found.watcher.close)
            return found

        yield watch_over


def _add_held(server, name, hold):
    """A model that goes on loading for as long as the file ``hold`` is there."""
    is_held = f"lambda: os.path.exists({str(hold)!r})"
    _add(server, name, f"[time.sleep(0.05) for _ in iter({is_held}, False)]")


def _processes(server, model):
    return [each for each in live_stubs(server.pid) if each.model == model]


def test_a_model_that_takes_long_to_load_keeps_no_other_from_being_healed(
    server, watching, tmp_path
):
    hold = tmp_path / "hold"
    _add_held(server, "long", hold)
    _add(server, "other")
    for model in ("long", "other"):
        server.control.load(model)
    hold.touch()
    seen = watching("long", "other")
    psutil.Process(_processes(server, "long")[0].pid).kill()
    seen.until_told("a process of model long died; reviving it")
    psutil.Process(_processes(server, "other")[0].pid).kill()
    seen.until_told("revived other")
    assert "revived long" not in seen.told
    hold.unlink()
    seen.until_told("revived long")
    assert seen.watcher.events.counts["process_died", "long"] == 1
    assert not seen.watcher.events.counts["given_up", "long"]


def test_a_model_that_the_machine_has_no_room_for_is_tried_for_as_long_as_that_lasts(
    server, watching, tmp_path, monkeypatch
):
    """Its shared memory, say: Triton tells of that as of a fault of the model."""
    monkeypatch.setattr(restart_backoff, "ATTEMPTS", 1)
    monkeypatch.setattr(watch, "LONGEST_PAUSE_S", 1.0)
    full = tmp_path / "full"
    fills = f"if os.path.exists({str(full)!r}): raise OSError(28, os.strerror(28), os.urandom(4))"
    _add(server, "roomy", fills)
    server.control.load("roomy")
    full.touch()
    seen = watching("roomy")
    psutil.Process(_processes(server, "roomy")[0].pid).kill()

    def is_told(part):
        return any(part in line for line in seen.told)

    seen.until(lambda: is_told("roomy is not healed yet: "), "what it lacks")
    log = server.log_file.read_bytes()
    seen.until(
        lambda: server.log_file.read_bytes()[len(log) :].count(b"roomy") > 4, "more attempts"
    )
    full.unlink()
    seen.until_told("revived roomy")
    assert not seen.watcher.events.counts["given_up", "roomy"]
    assert sum("is not healed yet" in line for line in seen.told) == 1


def test_what_a_model_forks_is_no_process_of_its_own(server):
    """It would stand for one that died, and be ended for it does nothing."""
    _add(server, "forking", "os.fork() or time.sleep(600)")
    server.control.load("forking")
    (stub,) = _processes(server, "forking")
    (worker,) = psutil.Process(stub.pid).children()
    assert worker.cmdline() == psutil.Process(stub.pid).cmdline()


def test_after_a_restart_a_model_that_takes_long_keeps_the_others_waiting_for_a_turn_only(
    server, watching, tmp_path, monkeypatch
):
    monkeypatch.setattr(watch, "LOAD_TURN_S", 1.0)
    hold = tmp_path / "hold"
    _add_held(server, "first", hold)
    _add(server, "second")
    for model in ("first", "second"):
        server.control.load(model)

    def state(model):
        return [each.state for each in server.control.index() if each.name == model]

    hold.touch()
    seen = watching("first", "second")
    psutil.Process(server.pid).kill()
    seen.until_told("Triton is serving again")
    seen.until(lambda: state("second") == ["READY"], "the second")
    assert state("first") != ["READY"]
    hold.unlink()
    seen.until_told("revived first")
    assert state("first") == ["READY"]


def test_a_load_that_ends_triton_says_so_and_names_the_warm_up(server):
    """The last of these: nothing is served after it."""
    _add(server, "deadly", "os.kill(os.getppid(), 9)", config=WARM_UP)
    with pytest.raises(ModelLoadFailed, match="Triton itself ended while it loaded") as failed:
        server.control.load("deadly")
    assert "deadly has a model_warmup" in str(failed.value)
