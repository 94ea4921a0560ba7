"""Run the suite, and what failed once more: ``python -m tests.suite``, with pytest's arguments.

Most tests talk to real servers with real deadlines, and a busy machine now and then makes one of
thousands miss its own. If at most five tests failed, exactly those are run again, alone and one
after the other. One that passes then is reported as unsteady and does not fail the run; one that
fails again does, and so do six failures, an error before any test ran, or a crash.
"""

import subprocess
import sys
from pathlib import Path

import pytest

FEW = 5
ROOT = Path(__file__).parent.parent


class Failures:
    """What failed in this run; with xdist, in any of its workers."""

    def __init__(self) -> None:
        self.tests: list[str] = []
        self.options: list[str] = []
        # A run that ended early, by -x or by an error of collection, has not run every test.
        self.is_whole = True

    def pytest_configure(self, config: pytest.Config) -> None:
        paths = config.option.file_or_dir
        self.options = [option for option in config.invocation_params.args if option not in paths]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and report.nodeid not in self.tests:
            self.tests.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.is_whole = False

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.config.getoption("maxfail"):
            self.is_whole = False


def run(arguments: list[str]) -> int:
    """Run pytest with these arguments, and the few tests that failed once more; returns the exit
    code, pytest's own if nothing was run again."""
    failures = Failures()
    code = int(pytest.main(arguments, plugins=[failures]))
    failed = failures.tests
    if code != pytest.ExitCode.TESTS_FAILED or not failures.is_whole or len(failed) > FEW:
        return code
    print(f"\n{len(failed)} failed: running exactly these once more, alone", flush=True)
    print(*(f"  {test}" for test in failed), sep="\n", flush=True)
    unsteady, code = [], 0
    for test in failed:
        # A process of its own for each: nothing of the run that failed is left in it.
        command = [sys.executable, "-m", "pytest", *failures.options, "-n", "0", test]
        again = subprocess.run(command, check=False).returncode
        if again == 0:
            unsteady.append(test)
        else:
            code = int(pytest.ExitCode.TESTS_FAILED)
    print("\n" + "=" * 80)
    for test in failed:
        if test in unsteady:
            print(f"unsteady: {test} failed in the run and passed alone")
        else:
            print(f"FAILED twice: {test}")
    print("=" * 80, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
