"""Which worker of ``make test`` takes which file."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.scheduling import LongestFirst, seconds_of

COMPUTE = ["tests/converters/proof/test_every_pair.py", "tests/converters/tasks/test_tensors.py"]
TOGETHER = ["tests/e2e/test_up.py", "tests/e2e/test_lint.py"]
WAIT = ["tests/e2e/test_signoff.py", "tests/gateway/test_app.py"]
TESTS = [f"{file}::test_{n}" for file in (*TOGETHER, *COMPUTE, *WAIT) for n in range(4)]


class Worker:
    """Completes what it is given, and notes the files."""

    shutting_down = False

    def __init__(self, name: str) -> None:
        self.gateway = SimpleNamespace(id=name)
        self.pending: list[int] = []
        self.files: dict[str, None] = {}

    def send_runtest_some(self, indices: list[int]) -> None:
        self.pending += indices
        self.files.update(dict.fromkeys(TESTS[index].partition("::")[0] for index in indices))

    def shutdown(self) -> None:
        self.shutting_down = True


def files_by_worker(order: list[int]) -> list[list[str]]:
    """The files of two workers; the one whose number is next in ``order`` completes a test, and
    after the last of them any that has one."""
    option = SimpleNamespace(loadscopereorder=False, tx=["2*popen"])
    config: Any = SimpleNamespace(option=option, getvalue=lambda name: getattr(option, name))
    scheduler = LongestFirst(config)
    workers: list[Any] = [Worker("gw0"), Worker("gw1")]
    for worker in workers:
        scheduler.add_node(worker)
    for worker in workers:
        scheduler.add_node_collection(worker, TESTS)
    scheduler.schedule()
    for number in [*order, *(n for _ in TESTS for n in (0, 1))]:
        if workers[number].pending:
            scheduler.mark_test_complete(workers[number], workers[number].pending.pop(0))
    assert not scheduler.has_pending
    return [list(worker.files) for worker in workers]


def test_the_first_computes_and_the_others_wait_for_servers():
    assert files_by_worker([1] * 10 + [0] * 8) == [COMPUTE, [*TOGETHER, *WAIT]]


@pytest.mark.parametrize("quick", [0, 1])
def test_who_is_done_takes_what_is_left(quick):
    files = files_by_worker([quick] * len(TESTS))
    assert sorted(files[0] + files[1]) == sorted((*COMPUTE, *TOGETHER, *WAIT))
    assert len(files[quick]) > len(files[1 - quick])


def test_the_longest_come_first_and_the_row_before_them():
    files = ["tests/e2e/test_tls.py", "tests/e2e/test_signoff.py", "tests/e2e/test_up.py"]
    assert sorted(files, key=seconds_of) == files
