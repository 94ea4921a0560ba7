"""What a start makes at the same time, and what waits for what. The processes are real, and wait
for each other's files."""

import subprocess
import sys

import pytest

from serving.errors import ServingError
from serving.triton.children import end
from tidegate.app import making
from tidegate.app.making import Job, Making

HEAD = """import pathlib, sys, time
def wait_for(name):
    deadline = time.monotonic() + 60
    while not pathlib.Path(name).exists():
        if time.monotonic() > deadline:
            sys.exit(f"{name} never came")
        time.sleep(0.01)
def done(name):
    return pathlib.Path(name).exists()
def write(name):
    pathlib.Path(name).touch()
"""


@pytest.fixture
def started(tmp_path, monkeypatch):
    """``started(*jobs)`` makes these, whose commands are programs that run in ``tmp_path``; the
    names of those that were begun."""
    monkeypatch.setattr(making.os, "cpu_count", lambda: 2)
    makers, logs, begun = [], [], []

    def begin(job, log):
        logs.append(log)
        begun.append(job.name)
        program = [sys.executable, "-ISc", HEAD + "\n".join(job.command)]
        process = subprocess.Popen(program, cwd=tmp_path, stdout=log, stderr=log)
        if log:
            log.close()
        return process

    def start(*jobs):
        lines, seen = [], []
        makers.append(Making(begin, seen.append, lines.append))
        try:
            makers[-1].run(jobs)
        finally:
            start.lines, start.logs, start.seen = lines, logs, seen
            start.running = [one for one in makers[-1].processes if one.poll() is None]
        return begun

    yield start
    for maker in makers:
        for process in maker.processes:
            end(process, 0)


def test_two_at_a_time_and_what_needs_another_after_it(started):
    needs_both = ["sys.exit(not (done('mood') and done('tags')))"]
    begun = started(
        Job("mood", "training mood", ["write('1')", "wait_for('2')", "write('mood')"]),
        Job("both", "composing both", needs_both, {"mood", "tags"}),
        Job("tags", "training tags", ["write('2')", "wait_for('1')", "write('tags')"]),
        Job(
            "chat",
            "converting chat",
            ["sys.exit(not (done('mood') or done('tags')))"],
            {"elsewhere"},
        ),
    )
    assert begun[:2] == ["mood", "tags"] and sorted(begun[2:]) == ["both", "chat"]
    assert max(map(len, started.seen)) == 2


def test_the_lines_of_two_come_whole_and_those_of_a_failed_one_before_its_error(started):
    with pytest.raises(ServingError, match="tags was not made"):
        started(
            Job(
                "mood", "training mood", ["print('half', end=' ', flush=True)", "wait_for('never')"]
            ),
            Job("tags", "training tags", ["print('a line', flush=True)", "sys.exit('no data')"]),
        )
    assert started.lines == ["a line", "no data"]
    assert len(started.running) == 1  # for who started it to end


def test_a_single_one_writes_to_the_terminal_itself(started):
    assert started(Job("mood", "training mood", ["write('1')"])) == ["mood"]
    assert started.logs == [None] and started.lines == []
