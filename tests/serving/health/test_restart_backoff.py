"""An unhealthy model is restarted with growing pauses, and given up."""

import signal
import subprocess
import time

import psutil

from serving.health.events import Events
from serving.health.restart_backoff import (
    ATTEMPTS,
    BUSY_PAUSE_S,
    LATER_S,
    WELL_AFTER_S,
    RestartBackoff,
)
from serving.triton.stubs import NAME, stub_of
from tests.running import wait_until


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_pauses_grow_and_after_the_last_attempt_it_is_tried_rarely():
    clock = Clock()
    backoff = RestartBackoff("m", mark=1)
    pauses = []
    while not backoff.is_given_up:
        assert backoff.is_due(clock)
        backoff.begin(clock)
        assert not backoff.is_due(clock)
        clock.now = backoff.not_before + 100  # a load may take longer than the pause
        backoff.fail(clock)
        pauses.append(backoff.not_before - clock.now)
        clock.now = backoff.not_before
    assert pauses == [0.5, 1, 2, 4, LATER_S]
    assert len(pauses) == ATTEMPTS
    assert backoff.is_due(clock)  # the cause may have passed
    backoff.begin(clock)
    assert backoff.fail(clock)
    assert backoff.not_before - clock.now == LATER_S


def test_an_attempt_amid_a_publication_does_not_count_and_is_due_again_soon():
    clock = Clock()
    backoff = RestartBackoff("m", mark=1)
    while not backoff.is_given_up:
        backoff.begin(clock)
        backoff.fail(clock)
    attempts, clock.now = backoff.attempts, backoff.not_before
    backoff.begin(clock)
    backoff.put_off(BUSY_PAUSE_S, clock)  # where it would be due after ten minutes
    assert (backoff.attempts, backoff.not_before) == (attempts, clock.now + BUSY_PAUSE_S)
    assert backoff.is_given_up  # it is still retried rarely
    clock.now += BUSY_PAUSE_S
    backoff.begin(clock)
    backoff.fail(clock)
    assert backoff.not_before - clock.now == LATER_S


def test_a_model_that_was_healthy_for_a_while_is_well():
    backoff = RestartBackoff("m", mark=1)
    backoff.begin(lambda: 1000.0)
    assert not backoff.is_well(lambda: 1001.0 + WELL_AFTER_S)  # it is still being loaded
    backoff.fail(lambda: 1300.0)
    assert not backoff.is_well(lambda: 9000.0)
    backoff.recovered(lambda: 10_000.0)
    assert not backoff.is_well(lambda: 10_000.0 + WELL_AFTER_S)
    assert backoff.is_well(lambda: 10_001.0 + WELL_AFTER_S)


def test_events_are_logged_and_counted(tmp_path):
    events = Events(tmp_path)
    events.add("healed", "m", 'a "quoted" reason')
    events.add("healed", "m")
    log = (tmp_path / "logs" / "events.jsonl").read_text().splitlines()
    assert len(log) == 2
    assert '"event": "healed", "model": "m", "detail": "a \\"quoted\\" reason"' in log[0]
    metrics = (tmp_path / "watch.prom").read_text()
    assert 'tidegate_watch_events_total{event="healed",model="m"} 2\n' in metrics
    assert metrics.startswith("# HELP tidegate_watch_events_total ")


def test_a_model_with_an_odd_name_breaks_no_metric(tmp_path):
    events = Events(tmp_path)
    events.add("healed", 'a"b\\c\nd')
    assert (
        f'{{event="healed",model="a{chr(92)}"b{chr(92) * 2}c{chr(92)}nd"}} 1\n' in events.render()
    )


def test_heartbeats_go_on_when_the_clock_is_set_back(tmp_path, monkeypatch):
    monkeypatch.setattr("serving.health.events.HEARTBEAT_S", 0.0)
    events, now = Events(tmp_path), time.time()
    events.heartbeat()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    events.heartbeat()
    assert (
        f"heartbeat_timestamp_seconds {now - 3600:.3f}\n" in (tmp_path / "watch.prom").read_text()
    )


def test_a_process_is_recognized_after_the_clock_is_set(monkeypatch):
    name = ["bash", "-c", f"exec -a {NAME} sleep 60"]
    with subprocess.Popen(name) as process:
        wait_until(lambda: stub_of(psutil.Process(process.pid)), 30, "its start")
        before = stub_of(psutil.Process(process.pid))
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda: 0.0)
        assert stub_of(psutil.Process(process.pid)) == before
        before.end()
        assert process.wait(60) == -signal.SIGKILL
