"""One stack for the whole run: a real Triton and a gateway, started once, on free ports."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

# Before anything imports ONNX Runtime: tests send nothing to anybody either.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# Before anything imports torch: two workers share two cores (``converters.offline`` says why).
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import converters.original
from tests.echoing import echoing
from tests.oracles import Oracles
from tests.running import (
    RunningStack,
    copy_repository,
    launch,
    policy_of,
    put_policy,
    stop,
    wait_ready,
)


@pytest.fixture(scope="session", autouse=True)
def oracles() -> Iterator[None]:
    """What this process converts asks its originals through ``tests.oracles``."""
    oracles = Oracles()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(converters.original, "subprocess", oracles)
        yield
    oracles.close()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A running stack with every known pipeline, on a copy of the repository."""
    home: Path = tmp_path_factory.mktemp("stack")
    copy_repository(home)
    with _one_at_a_time(tmp_path_factory):
        running = launch(home)
        try:
            wait_ready(running)
        except BaseException:
            stop(running)
            raise
    try:
        yield running
    finally:
        assert stop(running) == 0, running.output


@contextlib.contextmanager
def _one_at_a_time(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The first of several pytest workers converts; the others then find it in the cache."""
    lock = tmp_path_factory.getbasetemp().parent / "stack.lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def built(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose models are built, for tests that start and break a stack of their own."""
    home: Path = tmp_path_factory.mktemp("built")
    shutil.copytree(stack.home / "model_repository", home / "model_repository")
    return home


@pytest.fixture(scope="session")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A stack that serves the echoing language model, and nothing that takes long to load."""
    with echoing(tmp_path_factory.mktemp("echo")) as running:
        yield running


@pytest.fixture
def echo_policy(echo: RunningStack) -> Iterator[Callable[[str], None]]:
    """``echo_policy(text)`` puts rules in force in ``echo``; none are left after the test."""
    with policy_of(echo.home):
        try:
            yield partial(put_policy, echo)
        finally:
            put_policy(echo, "")
