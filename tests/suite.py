"""Run the suite, and what failed once more: ``python -m tests.suite``, with pytest's arguments.

Most tests talk to real servers with real deadlines, and a busy machine now and then makes one of
thousands miss its own. If at most five tests failed, each of their files is run again, alone, up to
the last test that failed: the tests of a file may share a server, which the earlier ones leave as
the later ones expect it. The tests of one file whose set-up failed count as one. A test that passes
in one of the two runs is reported as unsteady and does not fail the suite; one that fails twice
does, and so do six failures, an error before any test ran, or a crash.

At the end it says which files took longest, and how much of that was work: the suite is to stay
under half an hour.
"""

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest

FEW = 5
SLOWEST = 40
CPU_S = "cpu_s"  # the property of a report that says what its phase took of the processors


class Failures:
    """What failed in this run, and what took how long; with xdist, in any of its workers."""

    def __init__(self) -> None:
        self.tests: list[str] = []
        # The failed tests, and the files whose set-up failed for any number of tests.
        self.causes: set[str] = set()
        self.order: list[str] = []  # all tests, in the order in which those of a file run
        self.seconds: dict[str, float] = defaultdict(float)  # by file, with what its fixtures took
        # Those of the processors too; a process counts where it was waited for.
        self.cpu_seconds: dict[str, float] = defaultdict(float)
        self.options: list[str] = []
        # A run that ended early, by -x or by an error of collection, has not run every test.
        self.is_whole = True

    def pytest_configure(self, config: pytest.Config) -> None:
        paths = config.option.file_or_dir
        self.options = [option for option in config.invocation_params.args if option not in paths]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.order = [item.nodeid for item in session.items] or self.order

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: object, ids: Sequence[str]) -> None:
        self.order = list(ids)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file = _file(report.nodeid)
        self.seconds[file] += report.duration
        self.cpu_seconds[file] += dict(report.user_properties).get(CPU_S, 0.0)
        if report.failed:
            self.causes.add(file if report.when == "setup" else report.nodeid)
            if report.nodeid not in self.tests:
                self.tests.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.is_whole = False

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self) -> None:
        """A worker has died, and took with it what its test would have said."""
        self.is_whole = False

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.config.getoption("maxfail"):
            self.is_whole = False

    def up_to_the_last(self, file: str) -> list[str]:
        """The file's tests, up to the last one that failed."""
        tests = [test for test in self.order if _file(test) == file]
        return tests[: 1 + max(tests.index(test) for test in self.tests if _file(test) == file)]


def run(arguments: list[str]) -> int:
    """Run pytest with these arguments, and the few tests that failed once more; returns the exit
    code, pytest's own if nothing was run again."""
    failures = Failures()
    code = int(pytest.main(arguments, plugins=[failures]))
    print("\nseconds by file, of all workers, and of the processors:")
    slowest = sorted(failures.seconds.items(), key=lambda item: item[1], reverse=True)
    for file, seconds in slowest[:SLOWEST]:
        print(f"{seconds:7.0f} {failures.cpu_seconds[file]:6.0f}  {file}")
    total, cpu_total = sum(failures.seconds.values()), sum(failures.cpu_seconds.values())
    print(f"{total:7.0f} {cpu_total:6.0f}  all")
    is_few = len(failures.causes) <= FEW
    if code != pytest.ExitCode.TESTS_FAILED or not failures.is_whole or not is_few:
        return code
    print(f"\n{len(failures.causes)} failed; their files once more, alone, up to:", flush=True)
    print(*(f"  {test}" for test in failures.tests), sep="\n", flush=True)
    failed_twice, unsteady = [], []
    for file in dict.fromkeys(map(_file, failures.tests)):
        again = _failed_alone(failures.up_to_the_last(file), failures.options)
        failed = {test for test in failures.tests if _file(test) == file}
        failed_twice += sorted(failed if again is None else failed & again)
        unsteady += sorted(set() if again is None else failed ^ again)
    print("\n" + "=" * 80)
    for test in failed_twice:
        print(f"FAILED: {test}, in the run and alone")
    for test in unsteady:
        print(f"unsteady: {test} failed in one of two runs")
    print("=" * 80, flush=True)
    return int(pytest.ExitCode.TESTS_FAILED) if failed_twice else 0


def _failed_alone(tests: list[str], options: list[str]) -> set[str] | None:
    """Those of the ``tests`` that fail in a process of their own, where nothing of the run is left;
    None if it did not come to its end."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "pytest", *options, "-n", "0", "-o", f"cache_dir={cache}"]
        code = subprocess.run([*command, *tests], check=False).returncode
        if code == pytest.ExitCode.OK:
            return set()
        record = Path(cache) / "v" / "cache" / "lastfailed"
        if code != pytest.ExitCode.TESTS_FAILED or not record.exists():
            return None
        return set(json.loads(record.read_text()))


def _file(test: str) -> str:
    return test.partition("::")[0]


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
