"""A bug of the sign-off is no verdict: its exit code is never that of "not signed"."""

import subprocess
import sys

import pytest

from tests.running import ROOT


def _run(*arguments):
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_before_the_load_it_could_not_start():
    run = _run("-m", "loadtests.signoff", "{}")
    assert run.returncode == 3
    assert "Traceback" in run.stderr and "KeyError" in run.stderr


@pytest.mark.parametrize(("has_begun", "code"), [(False, 3), (True, 2)])
def test_after_it_began_it_is_undecided(has_begun, code):
    lines = (
        "import sys",
        "from loadtests.signoff import __main__ as signoff",
        "sys.excepthook = signoff._end_unforeseen",
        f"signoff._Load.has_begun = {has_begun}",
        "assert signoff._until_stopped(lambda: 1 / 0) is False",
        "assert signoff._until_stopped(lambda: None) is True",
        "1 / 0",
    )
    run = _run("-c", "\n".join(lines))
    assert run.returncode == code, run.stderr
    assert run.stderr.count("ZeroDivisionError") == 2
    assert "this is a bug: the report is partial, and unsigned" in run.stderr
