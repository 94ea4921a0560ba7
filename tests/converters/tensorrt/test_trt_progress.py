"""The line that shows the progress of a build."""

import io
import threading

import pytest

from converters.tensorrt.progress import ProgressLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def stop():
    return threading.Event()


def test_nested_phases_add_up(stop):
    line = ProgressLine(io.StringIO(), stop)
    line.started("Building Engine", None, 2)
    assert line.share() == 0
    line.started("Tactics", "Building Engine", 4)
    assert line.stepped("Tactics", 1)
    assert line.share() == pytest.approx(0.25)  # half of the first half
    line.finished("Tactics")
    line.stepped("Building Engine", 0)
    assert line.share() == 0.5
    line.stepped("Building Engine", 1)
    assert line.share() == 1


def test_a_terminal_gets_one_line_and_a_log_a_line_for_each_tenth(stop):
    terminal, log = Terminal(), io.StringIO()
    for out in (terminal, log):
        line = ProgressLine(out, stop)
        line.started("Building Engine", None, 1000)
        for step in range(1000):
            line.stepped("Building Engine", step)
        line.close()
    assert terminal.getvalue().count("\n") == 1 and terminal.getvalue().count("\r") == 1001
    lines = log.getvalue().splitlines()
    assert len(lines) == 11
    assert lines[0] == "building the engine:   0% Building Engine"
    assert lines[-1] == "building the engine: 100% Building Engine"


def test_a_long_line_is_cut_so_that_it_stays_one(stop):
    terminal = Terminal()
    line = ProgressLine(terminal, stop)
    line.started("x" * 200, None, 1)
    assert max(map(len, terminal.getvalue().split("\r"))) == 78


def test_a_stop_takes_effect_at_the_next_step(stop):
    line = ProgressLine(io.StringIO(), stop)
    line.started("Building Engine", None, 3)
    assert line.stepped("Building Engine", 0) is True
    stop.set()
    assert line.stepped("Building Engine", 1) is False


def test_an_unknown_phase_or_one_without_steps_breaks_nothing(stop):
    line = ProgressLine(io.StringIO(), stop)
    line.finished("nobody")
    assert line.stepped("nobody", 3)
    line.started("empty", "a parent that was never reported", 0)
    line.stepped("empty", 7)
    assert line.share() == 1


def test_reports_from_several_threads_do_not_break_it(stop):
    line = ProgressLine(io.StringIO(), stop)
    failures = []

    def report(name):
        try:
            line.started(name, None, 200)
            for step in range(200):
                line.stepped(name, step)
            line.finished(name)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=report, args=[f"phase {n}"]) for n in range(8)]
    [thread.start() for thread in threads]
    [thread.join(10) for thread in threads]
    assert not failures and line.share() == 0
