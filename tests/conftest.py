"""One stack for the whole run: a real Triton and a gateway, started once, on free ports."""

import contextlib
import fcntl
import gc
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import httpx
import pytest

# Before anything imports ONNX Runtime: tests send no telemetry either.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# Before anything imports torch: two workers share two cores (``converters.offline`` says why).
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

from converters.proof import reference_process
from converters.sources import booster_probe, graph_probe
from tests.echoing import echoing
from tests.forked_references import ForkedReferences
from tests.marking import MARKERS, has_unit_tests, marker_of, refuse_servers
from tests.running import (
    RunningStack,
    copy_repository,
    launch,
    policy_of,
    put_policy,
    stop,
    wait_ready,
)
from tests.scheduling import TOGETHER, LongestFirst, file_of, seconds_of
from tests.suite import CPU_S
from tidegate.app.task_registry import KNOWN

TESTS = Path(__file__).parent
# ``httpx.get`` reads all the authorities' certificates anew in each call, in 20 ms: once is enough.
httpx._transports.default.create_ssl_context = cache(httpx._transports.default.create_ssl_context)
# By default it waits 5 s, which a busy machine may need.
for part in ("connect", "read", "write", "pool"):
    setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, part, 30.0)
OPENAI_NPM = "openai@7.57.0"
# The function that stops the stack, while it runs.
STOP_STACK = pytest.StashKey[Callable[[], None]]()
# The marker of the test that runs now.
MARKER = pytest.StashKey[str]()
# The seconds of the processors that this process and those that it has waited for have taken.
CPU_TAKEN_S = pytest.StashKey[float]()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LongestFirst | None:
    """For ``--dist loadfile``, which ``make test`` uses."""
    if config.getoption("dist") != "loadfile":
        return None
    # Else xdist sorts the files by their number of tests; the longest have few.
    config.option.loadscopereorder = False
    return LongestFirst(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker how the tests are distributed."""
    node.workerinput["in_a_row"] = node.config.getoption("dist") == "loadfile"


def pytest_configure(config: pytest.Config) -> None:
    gc.disable()  # until everything is collected: nothing of it is garbage
    refuse_servers(lambda: config.stash.get(MARKER, "") == "unit")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """``-m unit`` does not import files without unit tests."""
    is_test = collection_path.name.startswith("test_") and collection_path.is_relative_to(TESTS)
    if config.option.markexpr == "unit" and is_test:
        return not has_unit_tests(collection_path, TESTS) or None
    return None


# In a test's id: a time with its fractions of a second, or an address in memory.
_OF_THIS_RUN = re.compile(r"\d{3,}\.\d{4,}|0x[0-9a-f]{8,}")


@pytest.hookimpl(tryfirst=True)  # before ``-m`` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        file = file_of(item.nodeid)
        if _OF_THIS_RUN.search(item.nodeid.partition("[")[2]):
            # Workers that collect different ids run nothing at all.
            raise pytest.UsageError(f"{item.nodeid}: give its parameters ids that are always equal")
        fixtures = frozenset(getattr(item, "fixturenames", ()))
        item.add_marker(marker_of(item.nodeid, fixtures))
        if "stack" in getattr(item, "fixturenames", ()) and file not in TOGETHER:
            raise pytest.UsageError(f"{file} uses the stack: name it in tests/scheduling.py")
    items.sort(key=lambda item: -seconds_of(item.nodeid))


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported and collected stays: the garbage collector need not look at it again."""
    gc.freeze()
    gc.enable()
    session.config.stash[CPU_TAKEN_S] = sum(os.times()[:4])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    item.config.stash[MARKER] = next(
        mark.name for mark in item.iter_markers() if mark.name in MARKERS
    )
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Say what each phase of a test took of the processors, for the end of ``tests.suite``."""
    report: Any = yield
    taken_s = sum(os.times()[:4])
    report.user_properties.append((CPU_S, taken_s - item.config.stash[CPU_TAKEN_S]))
    item.config.stash[CPU_TAKEN_S] = taken_s
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Stop the stack after the last of the files that use it, if they run in a row."""
    yield
    is_needed = nextitem is None or file_of(nextitem.nodeid) in TOGETHER
    in_a_row = getattr(item.config, "workerinput", {}).get("in_a_row", True)
    if STOP_STACK in item.config.stash and in_a_row and not is_needed:
        item.config.stash[STOP_STACK]()


@pytest.fixture(scope="session", autouse=True)
def forked_references() -> Iterator[None]:
    """Conversions in this process start their own processes through ``tests.forked_references``."""
    references = ForkedReferences()
    with pytest.MonkeyPatch.context() as patch:
        for module in (reference_process, booster_probe, graph_probe):
            patch.setattr(module, "subprocess", references)
        yield
    references.close()


@pytest.fixture(scope="session")
def stack(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[RunningStack]:
    """A running stack with every pipeline that `tidegate convert` knows, on a copy of the
    repository. What `tidegate up` trains besides would take minutes
    (tests/tidegate/test_default_pipelines.py)."""
    home: Path = tmp_path_factory.mktemp("stack")
    copy_repository(home)
    with _one_at_a_time(tmp_path_factory):
        # A whole answer of a language model may take longer than usual while the machine is busy.
        running = launch(home, *KNOWN, TIDEGATE_DEADLINE_S="120")
        try:
            wait_ready(running)
        except BaseException:
            stop(running)
            raise

    def stop_stack() -> None:
        del pytestconfig.stash[STOP_STACK]
        assert stop(running) == 0, running.output

    pytestconfig.stash[STOP_STACK] = stop_stack
    yield running
    if STOP_STACK in pytestconfig.stash:
        stop_stack()


@contextlib.contextmanager
def _one_at_a_time(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The first of several pytest workers converts; the others find the results in the cache."""
    lock = tmp_path_factory.getbasetemp().parent / "stack.lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def built(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with built models, for tests that start and break a stack of their own: of QUICK
    pipelines, since a language model takes seconds to load and a gigabyte of memory."""
    home: Path = tmp_path_factory.mktemp("built")
    without = shutil.ignore_patterns("chat")
    shutil.copytree(stack.home / "model_repository", home / "model_repository", ignore=without)
    return home


@pytest.fixture(scope="session")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A stack that serves the echoing language model and nothing that is slow to load."""
    with echoing(tmp_path_factory.mktemp("echo")) as running:
        yield running


@pytest.fixture
def echo_policy(echo: RunningStack) -> Iterator[Callable[[str], None]]:
    """``echo_policy(text)`` puts rules into force in ``echo``; none remain after the test."""
    with policy_of(echo.home):
        try:
            yield partial(put_policy, echo)
        finally:
            put_policy(echo, "")


@pytest.fixture
def javascript(tmp_path: Path) -> Callable[[RunningStack, str], Any]:
    """``javascript(stack, code)`` runs a module with OpenAI's own client in Node.js, which is
    fetched once; the environment has KEY and URL. What it prints, from JSON."""
    if not shutil.which("npm"):
        pytest.skip("there is no npm on this machine")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "tidegate" / "node" / OPENAI_NPM
    if not (folder / "node_modules" / "openai").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--silent", OPENAI_NPM]
        subprocess.run(command, cwd=folder, check=True, timeout=90)
    (tmp_path / "node_modules").symlink_to(folder / "node_modules")

    def run(stack: RunningStack, code: str) -> Any:
        script = tmp_path / "call.mjs"
        script.write_text(code)
        ended = subprocess.run(
            ["node", script],
            env={**os.environ, "KEY": stack.key, "URL": f"{stack.url}/v1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    return run
