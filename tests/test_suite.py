"""``make test``: what failed in the run runs once more, after the tests that precede it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TESTS = """
import pathlib

def nth_run(name):
    file = pathlib.Path(__file__).with_name(name)
    file.write_text(file.read_text() + "x" if file.exists() else "x")
    return len(file.read_text())

def test_before():
    global served
    served = nth_run("before")
"""
AFTER = "\ndef test_after():\n    assert nth_run('after')\n"

FLAKY = "\ndef test_flaky_{0}():\n    assert nth_run('flaky_{0}') > 1\n"
DEPENDENT = "\ndef test_dependent():\n    assert served == 2\n"
BROKEN = "\ndef test_broken():\n    nth_run('broken')\n    assert False\n"


def _run(folder: Path, tests: str, *arguments: str) -> tuple[int, str]:
    (folder / "pytest.ini").touch()
    (folder / "test_toy.py").write_text(TESTS + tests)
    result = subprocess.run(
        [sys.executable, "-m", "tests.suite", "-p", "xdist.plugin", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    return result.returncode, result.stdout + result.stderr


def _runs(folder: Path, name: str) -> int:
    return len((folder / name).read_text())


def test_one_that_passes_with_those_before_it_is_unsteady_and_the_run_is_green(tmp_path):
    code, output = _run(tmp_path, DEPENDENT + AFTER, "-n", "2", "--dist", "loadfile")
    assert code == 0, output
    assert "unsteady: test_toy.py::test_dependent failed in one of two runs" in output
    assert (_runs(tmp_path, "before"), _runs(tmp_path, "after")) == (2, 1)


def test_one_that_fails_again_fails_the_run(tmp_path):
    code, output = _run(tmp_path, FLAKY.format(1) + BROKEN, "-n", "0", "test_toy.py")
    assert code == 1, output
    assert "FAILED: test_toy.py::test_broken" in output
    assert "unsteady: test_toy.py::test_flaky_1 failed in one of two runs" in output
    assert _runs(tmp_path, "broken") == 2


def test_two_that_fail_once_each_do_not_fail_the_run(tmp_path):
    second = "\ndef test_second():\n    assert nth_run('second') != 2\n"
    code, output = _run(tmp_path, second + FLAKY.format(1), "-n", "0", "test_toy.py")
    assert code == 0, output
    for test in ("second", "flaky_1"):
        assert f"unsteady: test_toy.py::test_{test} failed in one of two runs" in output


def test_a_worker_that_dies_fails_the_run(tmp_path):
    crash = "\ndef test_crash():\n    import os\n    nth_run('crash') > 1 or os._exit(3)\n"
    code, output = _run(tmp_path, crash, "-n", "2", "--dist", "loadfile")
    assert code == 1, output
    assert "unsteady" not in output


def test_a_second_run_that_crashes_fails_the_run(tmp_path):
    crash = "\ndef test_crash():\n    import os\n    nth_run('crash') == 1 or os._exit(3)\n"
    code, output = _run(tmp_path, crash + FLAKY.format(1), "-n", "0", "test_toy.py")
    assert code == 1, output
    assert "FAILED: test_toy.py::test_flaky_1" in output


def test_a_set_up_that_fails_for_many_tests_is_one_failure(tmp_path):
    tests = (
        "\nimport pytest\n@pytest.fixture(scope='module')\ndef served():\n"
        "    assert nth_run('served') > 1\n"
    )
    tests += "".join(f"\ndef test_served_{n}(served):\n    pass\n" for n in range(7))
    code, output = _run(tmp_path, tests, "-n", "0")
    assert code == 0, output
    assert "unsteady: test_toy.py::test_served_6 failed in one of two runs" in output
    assert _runs(tmp_path, "served") == 2


@pytest.mark.parametrize(
    ("tests", "options", "code"),
    [
        ("".join(FLAKY.format(n) for n in range(6)), (), 1),  # too many for an accident
        (FLAKY.format(0), ("-x",), 1),  # the rest has not run
        (FLAKY.format(0) + "\nnonsense(", (), 2),
        (FLAKY.format(0), ("-k", "before"), 0),
    ],
    ids=["six fail", "stopped at the first", "cannot be collected", "nothing fails"],
)
def test_nothing_runs_again(tmp_path, tests, options, code):
    status, output = _run(tmp_path, tests, "-n", "0", *options)
    assert status == code, output
    assert "once more" not in output
    assert not (tmp_path / "flaky_0").exists() or _runs(tmp_path, "flaky_0") == 1
