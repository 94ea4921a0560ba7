"""What the verbs say of a stack that is starting, and what `tidegate status` makes of the event
log, of drains and of gateway.toml."""

import json
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta

import pytest

from serving.errors import ServingError
from serving.health.events import Event, Events, last_events
from serving.triton.ports import Ports
from tests.running import ROOT, wait_until
from tidegate.app import demo
from tidegate.app import stack as stack_module
from tidegate.app.chat import ChatOptions, Conversation
from tidegate.app.claim import Claim, Running, StillStarting, running_in
from tidegate.app.paths import Paths
from tidegate.app.restart import RestartOptions, restart
from tidegate.app.routes_file import Share, read_shares
from tidegate.app.stack import Stack, StackOptions
from tidegate.app.status import Report, Server, server_state, status
from tidegate.app.top import Gateway
from tidegate.app.versions import versions_report

PHASE = "step 1 of 3: converting text_embedding (proving the graph)"
PORTS = [{"http": 1, "grpc": 2, "metrics": 3}, {"http": 11, "grpc": 12, "metrics": 13}]
FIRST, SECOND = "127.0.0.1:2", "127.0.0.1:12"


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("TIDEGATE_HOME", "TIDEGATE_REPOSITORY", "TIDEGATE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return Paths(tmp_path)


def _running(paths, **fields):
    return Running(
        1,
        str(paths.home),
        str(paths.repository),
        "http://127.0.0.1:1",
        "http://127.0.0.1:1",
        PORTS[0],
        1,
        ["text_embedding"],
        [str(paths.state / "logs" / "events.jsonl")],
        replicas=PORTS,
        **fields,
    )


@pytest.fixture
def starting(home):
    claim = Claim(home.state, _running(home, phase=PHASE))
    yield home
    claim.close()


def test_status_says_what_the_start_does_and_asks_nobody(starting):
    report = status(starting)
    assert (report.state, report.is_healthy) == ("starting", False)
    document = json.loads(json.dumps(report.as_dict()))
    assert document["running"]["phase"] == PHASE
    assert {server["state"] for server in document["servers"].values()} == {"starting"}
    lines = list(report.lines())
    assert f"  now         {PHASE}" in lines
    assert not [line for line in lines if "not answer" in line or "make up" in line]
    assert not [line for line in lines if "events.jsonl" in line]  # there is none yet


def test_the_step_of_a_conversion_is_shown_while_it_lasts(home, monkeypatch):
    """The child is not `tidegate convert`, but says its step as that does, and waits."""
    go = home.home / "go"
    child = (
        "import pathlib, time\n"
        "from tidegate.app.progress import note_phase\n"
        "note_phase('text_embedding: proving the graph')\n"
        f"while not pathlib.Path({str(go)!r}).exists():\n"
        "    time.sleep(0.02)\n"
    )
    monkeypatch.setattr(
        stack_module,
        "start",
        lambda command, environment, log: subprocess.Popen(
            [sys.executable, "-c", child], env=environment, cwd=ROOT
        ),
    )
    ports = {"gateway_port": 1, "grpc_port": 2, "admin_port": 3, "triton": Ports(), "workers": 1}
    options = StackOptions(home, "127.0.0.1", pipelines=("text_embedding",), **ports)
    stack = Stack(options, lambda line: None)
    stack._claim, stack._steps = Claim(home.state, stack._running()), 3
    converting = threading.Thread(target=stack._make, args=(["text_embedding"],))
    try:
        converting.start()
        wait_until(lambda: running_in(home.state).phase == PHASE, 60, "its step")
        assert status(home).state == "starting"
    finally:
        go.touch()
        converting.join(60)
        stack.stop()
    assert not converting.is_alive()
    assert not list(home.state.glob("phase*"))


@pytest.mark.parametrize(
    "ask",
    [
        lambda paths: Gateway.of(paths, None),  # top, canary --verdict, shadow
        lambda paths: demo.gateway(paths, None),
        lambda paths: Conversation.open(paths, None, ChatOptions()),
        lambda paths: versions_report(paths, "text_embedding", ()),
        lambda paths: list(restart(RestartOptions(), paths, print)),
    ],
    ids=["top", "demo", "chat", "versions", "restart"],
)
def test_what_needs_the_stack_says_that_it_is_starting(starting, ask):
    with pytest.raises(StillStarting, match=r"still starting \(step 1 of 3: converting"):
        ask(starting)


def test_versions_of_what_was_never_converted(home):
    with pytest.raises(ServingError, match=r"never converted .*: tidegate convert text_embedding"):
        versions_report(home, "text_embedding", ())


NOW = datetime(2026, 11, 28, 19, 17, 12, tzinfo=UTC)


def _event(event, detail="", seconds_ago=1.0):
    return Event((NOW - timedelta(seconds=seconds_ago)).isoformat(), event, "", detail, FIRST)


@pytest.mark.parametrize(
    ("fault", "events", "is_drained", "expected"),
    [
        ("", [], False, "serving"),
        ("", [], True, "drained"),
        ("does not serve mood", [], False, "unhealthy"),
        ("does not serve mood", [_event("triton_died", "killed")], False, "died"),
        ("does not serve mood", [_event("triton_hung")], False, "died"),
        ("does not serve mood", [_event("restart_asked")], True, "restarting"),
        ("", [_event("restart_asked")], True, "restarting"),
        ("x", [_event("restart_asked", seconds_ago=3600)], False, "unhealthy"),
        ("x", [_event("restart_asked"), _event("triton_died")], False, "died"),
        ("x", [_event("triton_died"), _event("triton_restarted")], False, "unhealthy"),
        ("", [_event("restart_asked"), _event("triton_restarted")], False, "serving"),
        ("x", [_event("triton_died"), _event("process_died")], False, "died"),
    ],
    ids=[
        "serves",
        "drained",
        "unhealthy",
        "died",
        "hung",
        "asked",
        "asked_and_drained",
        "asked_long_ago",
        "asked_and_died",
        "back_but_wrong",
        "back",
        "another_event",
    ],
)
def test_the_state_of_a_server(fault, events, is_drained, expected):
    server = server_state(fault, events, is_drained=is_drained, now=NOW)
    assert server.state == expected
    assert bool(server.fault) == (expected in ("died", "unhealthy"))


def test_a_death_is_told_with_its_time_and_reason():
    server = server_state(
        "gone", [_event("triton_died", "killed", seconds_ago=0)], is_drained=False
    )
    shown = NOW.astimezone().strftime("%H:%M:%S")
    assert f"{shown} (killed), and is being started again" in str(server)


def test_a_restart_that_was_asked_for_is_no_fault_and_has_a_word_of_its_own(home):
    running = _running(home, is_ready=True)
    servers = {FIRST: Server("restarting", since=NOW.isoformat()), SECOND: Server("serving")}
    report = Report(running, servers=servers)
    assert (report.state, report.is_healthy) == ("restarting", True)
    assert any("is being restarted since" in line for line in report.lines())
    assert Report(running, gateway="is not ready", servers=servers).state == "unhealthy"


def test_canaries_and_shadows_stand_under_their_pipeline(home):
    home.state.mkdir()
    home.policy.write_text(
        '[routes.mood]\nper = "request"\n"mood.v1" = 50\n"mood.v2" = 0\n'
        '[shadows.calm]\nto = "calm.v3"\npercent = 10\n'
    )
    shares = read_shares(home.policy)
    assert shares == [
        Share("mood", "mood.v1", "canary", 50, "request"),
        Share("calm", "calm.v3", "shadow", 10, "request"),
    ]
    report = Report(_running(home, is_ready=True), pipelines={"mood": "ready"}, routes=shares)
    lines = list(report.lines())
    assert lines[lines.index("  mood: version not known   ready") + 1] == (
        "    canary mood.v1: 50 % of the requests"
    )
    home.policy.write_text("[routes.mood]\nmood = 1")
    with pytest.raises(ServingError):
        read_shares(home.policy)


def test_the_last_events_are_those_since_the_start(tmp_path):
    events = Events(tmp_path)
    log = tmp_path / "logs" / "events.jsonl"
    assert log.read_text() == ""  # there to be followed, before the first event
    start = datetime.now(UTC)
    old = Event((start - timedelta(hours=1)).isoformat(), "triton_died")
    log.write_text(json.dumps(old.__dict__) + "\n" + '{"time": "cut o\n{"no": "event"}\n')
    events.add("healed", "mood", "revived", replica=FIRST)
    (event,) = last_events(tmp_path, start - timedelta(seconds=1))
    assert (event.event, event.model, event.detail, event.replica) == (
        "healed",
        "mood",
        "revived",
        FIRST,
    )
    assert last_events(tmp_path / "nothing", start) == []


def test_status_lists_the_last_events(home):
    event = Event(NOW.isoformat(), "triton_died", "", "killed", FIRST)
    report = Report(_running(home, is_ready=True), events=[event])
    assert any(line.endswith(f"triton_died {FIRST} killed") for line in report.lines())
    assert report.as_dict()["events"][0]["event"] == "triton_died"
