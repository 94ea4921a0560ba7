"""A model that loads, or does not: Triton's own reason is reported, and nothing waits in vain.

The path of the server's home contains every character that a shell would interpret.
"""

import contextlib
import threading

import psutil
import pytest

from serving.errors import ModelLoadFailed, ServingError
from serving.health import restart_backoff, watch
from serving.health.watch import Watcher
from serving.repository.model_repository import ModelRepository
from serving.triton import control, leftovers, loading
from serving.triton.control import TritonControl
from serving.triton.launch import LaunchOptions, TritonServer
from serving.triton.ports import Ports, free_ports
from serving.triton.stubs import live_stubs
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
ENOUGH_S = 60  # far below the load timeout


def _add(server, name, initialize="pass", config=""):
    folder = server.options.repository.path / name
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(CONFIG + config)
    if initialize:
        (folder / "1" / "model.py").write_text(MODEL.format(initialize=initialize))


def _states(server, name):
    return [model.state for model in server.control.index() if model.name == name]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """In a folder whose path a shell would not take unquoted; ``messages`` is what it reported."""
    home = tmp_path_factory.mktemp("loading") / ODD
    repository = home / "model_repository"
    repository.mkdir(parents=True)
    messages = []
    ports = Ports(*free_ports(3))
    options = LaunchOptions(ModelRepository(repository), home / ".tidegate", ports)
    server = TritonServer(options, report=messages.append)
    server.messages = messages
    server.start()
    yield server
    server.stop(gently=False)
    server.control.close()
    assert not list(leftovers.FOLDER.glob(f"{server._prefix}*"))


def test_a_home_with_odd_characters_can_be_served(server):
    _add(server, "good")
    server.control.load("good")
    assert _states(server, "good") == ["READY"]


def test_a_refused_config_is_reported_with_tritons_reason_and_the_log(server):
    _add(server, "refused", config="dynamic_batching { preferred_batch_size: [0] }")
    with pytest.raises(ModelLoadFailed) as failed:
        server.control.load("refused")
    assert "preferred size must be positive" in str(failed.value)
    assert f"(log: {server.log_file})" in str(failed.value)


def test_a_slow_load_is_reported_and_its_limit_can_be_set(server, monkeypatch):
    monkeypatch.setattr(loading, "REPORT_EVERY_S", 1.0)
    _add(server, "slow", "time.sleep(4)")
    with (
        TritonControl(server.control.address, server.key, 1.0) as hurried,
        pytest.raises(ModelLoadFailed, match=r"not loaded within 1 s: .*--load-timeout"),
    ):
        hurried.load("slow")
    server.control.load("slow")
    assert any(line.strip().startswith("still loading slow (") for line in server.messages)


def test_a_reload_that_hangs_is_bounded_by_earlier_loads_and_the_next_one_works(
    server, tmp_path, monkeypatch
):
    """The watcher waits for it, and heals nothing else meanwhile."""
    hang = tmp_path / "hang"
    line = f"time.sleep(3600 if os.path.exists({str(hang)!r}) else 0)"
    _add(server, "sleepy", line)
    monkeypatch.setattr(control, "LEAST_RELOAD_S", 3.0)
    server.control.load("sleepy")
    before = live_stubs(server.pid)
    hang.touch()
    with pytest.raises(ModelLoadFailed, match=r"not reloaded within .* the next attempt gets"):
        server.control.load("sleepy", afresh=True)
    assert server.control._bound_s("sleepy") > 3.0
    hang.unlink()
    wait_until(lambda: live_stubs(server.pid) <= before, 30, "the end of what hung")
    server.control.load("sleepy", afresh=True)
    assert _states(server, "sleepy") == ["READY"]


def test_a_process_that_cannot_start_is_an_error_in_seconds(server):
    """Without model.py. Triton 2.51 never answers this load."""
    _add(server, "empty", initialize="")
    with pytest.raises(ModelLoadFailed, match="Python model file not found") as failed:
        server.control.load("empty")
    assert "Triton waits" in str(failed.value)


class Watching:
    """A watcher that is called as ``tidegate up`` calls it, and its messages."""

    def __init__(self, server, *models):
        self.messages = []
        self.watcher = Watcher(server, models, self.messages.append)

    def until(self, condition, what):
        def check():
            self.watcher.check()
            return condition()

        wait_until(check, ENOUGH_S, f"{what}: {self.messages}")

    def until_message(self, line):
        self.until(lambda: line in self.messages, line)


@pytest.fixture
def watching(server):
    """``watching(models)`` starts a watcher; it is closed after the test."""
    with contextlib.ExitStack() as stack:

        def watch_over(*models):
            watching = Watching(server, *models)
            stack.callback(watching.watcher.close)
            return watching

        yield watch_over


def _add_blocked(server, name, block):
    """A model that keeps loading for as long as the file ``block`` exists."""
    is_blocked = f"lambda: os.path.exists({str(block)!r})"
    _add(server, name, f"[time.sleep(0.05) for _ in iter({is_blocked}, False)]")


def _processes(server, model):
    return [stub for stub in live_stubs(server.pid) if stub.model == model]


def test_a_slow_load_does_not_keep_other_models_from_being_healed(server, watching, tmp_path):
    block = tmp_path / "hold"
    _add_blocked(server, "long", block)
    _add(server, "other")
    for model in ("long", "other"):
        server.control.load(model)
    block.touch()
    seen = watching("long", "other")
    psutil.Process(_processes(server, "long")[0].pid).kill()
    seen.until_message("a process of model long died; reviving it")
    psutil.Process(_processes(server, "other")[0].pid).kill()
    seen.until_message("revived other")
    assert "revived long" not in seen.messages
    block.unlink()
    seen.until_message("revived long")
    assert seen.watcher.events.counts["process_died", "long"] == 1
    assert not seen.watcher.events.counts["given_up", "long"]


def test_a_model_is_retried_for_as_long_as_the_machine_lacks_room_for_it(
    server, watching, tmp_path, monkeypatch
):
    """For example for its shared memory: Triton reports that like a fault of the model."""
    monkeypatch.setattr(restart_backoff, "ATTEMPTS", 1)
    monkeypatch.setattr(watch, "LONGEST_PAUSE_S", 1.0)
    full = tmp_path / "full"
    fills = f"if os.path.exists({str(full)!r}): raise OSError(28, os.strerror(28), os.urandom(4))"
    _add(server, "roomy", fills)
    server.control.load("roomy")
    full.touch()
    seen = watching("roomy")
    psutil.Process(_processes(server, "roomy")[0].pid).kill()

    def is_reported(part):
        return any(part in line for line in seen.messages)

    seen.until(lambda: is_reported("roomy is not healed yet: "), "what it lacks")
    log = server.log_file.read_bytes()
    seen.until(
        lambda: server.log_file.read_bytes()[len(log) :].count(b"roomy") > 4, "more attempts"
    )
    full.unlink()
    seen.until_message("revived roomy")
    assert not seen.watcher.events.counts["given_up", "roomy"]
    assert sum("is not healed yet" in line for line in seen.messages) == 1


def test_a_model_that_loads_for_long_is_given_up_until_it_was_healthy_for_a_while(
    server, watching, tmp_path, monkeypatch
):
    """Its loads take longer than a healthy model takes to be trusted again."""
    monkeypatch.setattr(restart_backoff, "ATTEMPTS", 2)
    monkeypatch.setattr(restart_backoff, "FIRST_PAUSE_S", 0.1)
    monkeypatch.setattr(restart_backoff, "WELL_AFTER_S", 0.3)
    broken = tmp_path / "broken"
    fails = f"if os.path.exists({str(broken)!r}): time.sleep(0.6); raise OSError('broken')"
    _add(server, "heavy", fails)
    server.control.load("heavy")
    broken.touch()
    seen = watching("heavy")
    counts = seen.watcher.events.counts
    psutil.Process(_processes(server, "heavy")[0].pid).kill()
    seen.until(lambda: counts["given_up", "heavy"], "giving up")
    broken.unlink()
    seen.watcher._backoffs["heavy"].not_before = 0.0  # as ten minutes later
    seen.until(lambda: counts["healed", "heavy"] == 1, "healing")
    seen.until(lambda: seen.watcher._backoffs["heavy"].is_well(), "trust")
    seen.until(lambda: len(_processes(server, "heavy")) == 1, "its only process")
    psutil.Process(_processes(server, "heavy")[0].pid).kill()
    seen.until(lambda: counts["healed", "heavy"] == 2, "healing at once")
    assert counts["given_up", "heavy"] == 1


def test_a_process_that_a_model_forks_is_not_an_instance(server):
    """It would count in place of a dead instance, and be ended because it does nothing."""
    _add(server, "forking", "os.fork() or time.sleep(600)")
    server.control.load("forking")
    (stub,) = _processes(server, "forking")
    (worker,) = psutil.Process(stub.pid).children()
    assert worker.cmdline() == psutil.Process(stub.pid).cmdline()


def test_after_a_restart_the_others_wait_for_a_slow_model_for_a_limited_time(
    server, watching, tmp_path, monkeypatch
):
    monkeypatch.setattr(watch, "LOAD_TURN_S", 1.0)
    block = tmp_path / "hold"
    _add_blocked(server, "first", block)
    _add(server, "second")
    for model in ("first", "second"):
        server.control.load(model)

    block.touch()
    seen = watching("first", "second")
    psutil.Process(server.pid).kill()
    seen.until_message("Triton is serving again")
    seen.until(lambda: _states(server, "second") == ["READY"], "the second")
    assert _states(server, "first") != ["READY"]
    block.unlink()
    seen.until_message("revived first")
    assert _states(server, "first") == ["READY"]


def test_a_load_that_crashes_triton_is_reported_with_the_warm_up(server):
    """The last test of this module: nothing is served after it."""
    _add(server, "deadly", "os.kill(os.getppid(), 9)", config=WARM_UP)
    with pytest.raises(ModelLoadFailed, match="Triton itself ended while it loaded") as failed:
        server.control.load("deadly")
    assert "deadly has a model_warmup" in str(failed.value)


@pytest.fixture
def own_server(tmp_path):
    """One that may be killed."""
    repository = tmp_path / "model_repository"
    repository.mkdir()
    ports = Ports(*free_ports(3))
    options = LaunchOptions(ModelRepository(repository), tmp_path / ".tidegate", ports)
    server = TritonServer(options)
    server.start()
    yield server
    server.forbid_start()
    server.stop(gently=False)
    server.control.close()
    assert not list(leftovers.FOLDER.glob(f"{server._prefix}*"))


def test_what_was_published_right_before_a_death_is_served_after_it(own_server):
    """No probe has seen it yet, and nothing else says that it is to be served."""
    for name in ("good", "other"):
        _add(own_server, name)
    own_server.control.load("good")
    seen = Watching(own_server, "good")
    try:
        _add(own_server, "fresh")
        own_server.control.load("fresh")
        psutil.Process(own_server.pid).kill()
        seen.until_message("Triton is serving again")
    finally:
        seen.watcher.close()
    assert [_states(own_server, name) for name in ("good", "fresh")] == [["READY"], ["READY"]]
    assert _states(own_server, "other") != ["READY"]  # which nobody published since


def test_a_stop_ends_a_restart_that_is_under_way_in_another_thread(own_server, monkeypatch):
    """As ``tidegate up`` ends while a watcher restarts its replica."""
    before, errors = own_server.pid, []

    def restart():
        with pytest.raises(ServingError) as error:
            own_server.restart()
        errors.append(str(error.value))

    monkeypatch.setattr(own_server.control, "is_live", lambda *arguments: False)  # it never is
    thread = threading.Thread(target=restart)
    thread.start()
    try:
        wait_until(lambda: own_server.pid not in (before, None), 30, "another process")
    finally:
        own_server.forbid_start()
        own_server.stop()
        thread.join(ENOUGH_S)
    assert errors == ["Triton is not started, because it is being stopped for good"]
    assert own_server.pid is None
    with pytest.raises(ServingError, match="being stopped for good"):
        own_server.start()
