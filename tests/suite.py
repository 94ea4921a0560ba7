"""Run the suite, and what failed once more: ``python -m tests.suite``, with pytest's arguments.

Most tests talk to real servers with real deadlines, and a busy machine now and then makes one of
thousands miss its own. If at most five tests failed, exactly those are run again, alone and one
after the other; the tests of one file whose set-up failed count as one, and run together. One that
passes then is reported as unsteady and does not fail the run; one that fails again does, and so do
six failures, an error before any test ran, or a crash.

At the end it says which files took longest: the suite is to stay under half an hour.
"""

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

FEW = 5
SLOWEST = 20
ROOT = Path(__file__).parent.parent


class Failures:
    """What failed in this run, and what took how long; with xdist, in any of its workers."""

    def __init__(self) -> None:
        # What is run together: the test, or the file whose set-up failed -> its failed tests.
        self.groups: dict[str, list[str]] = {}
        self.seconds: dict[str, float] = defaultdict(float)  # by file, with what its fixtures took
        self.options: list[str] = []
        # A run that ended early, by -x or by an error of collection, has not run every test.
        self.is_whole = True

    def pytest_configure(self, config: pytest.Config) -> None:
        paths = config.option.file_or_dir
        self.options = [option for option in config.invocation_params.args if option not in paths]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid.partition("::")[0]] += report.duration
        if report.failed:
            test = report.nodeid
            group = test.partition("::")[0] if report.when == "setup" else test
            tests = self.groups.setdefault(group, [])
            if test not in tests:
                tests.append(test)

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
    print("\nseconds by file, of all workers:")
    slowest = sorted(failures.seconds.items(), key=lambda item: item[1], reverse=True)
    for file, seconds in slowest[:SLOWEST]:
        print(f"{seconds:7.0f}  {file}")
    groups = failures.groups
    if code != pytest.ExitCode.TESTS_FAILED or not failures.is_whole or len(groups) > FEW:
        return code
    print(f"\n{len(groups)} failed: running exactly these once more, alone", flush=True)
    print(*(f"  {group}" for group in groups), sep="\n", flush=True)
    unsteady, code = [], 0
    for group, tests in groups.items():
        # A process of its own for each: nothing of the run that failed is left in it.
        command = [sys.executable, "-m", "pytest", *failures.options, "-n", "0", *tests]
        again = subprocess.run(command, check=False).returncode
        if again == 0:
            unsteady.append(group)
        else:
            code = int(pytest.ExitCode.TESTS_FAILED)
    print("\n" + "=" * 80)
    for group in groups:
        if group in unsteady:
            print(f"unsteady: {group} failed in the run and passed alone")
        else:
            print(f"FAILED twice: {group}")
    print("=" * 80, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
