"""kill -9 of the publisher in every phase, under load: the old state or the new, no request
lost."""

import shutil
import signal
import subprocess
import sys

import pytest

from modelspec.layout import staging_folder
from serving.publish.phases import PublishPhase
from serving.publish.recovery import clear_up
from serving.repository.model_repository import ModelRepository
from serving.triton.servers import servers_of
from tests.running import ROOT, wait_until
from tests.serving.small_pipeline import NAME, stage
from tests.serving.small_server import serving_small_pipeline, under_load

BEFORE_THE_PIN = [
    step
    for step in PublishPhase
    if list(PublishPhase).index(step) < list(PublishPhase).index(PublishPhase.PINNED)
]
# A rollback goes through fewer of the same phases.
SWITCH_STEPS = [
    PublishPhase.JOURNALLED,
    PublishPhase.POLICIES_WIDENED,
    PublishPhase.LOADED,
    PublishPhase.PINNED,
    PublishPhase.SERVED,
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving_small_pipeline(tmp_path_factory.mktemp("killed")) as running:
        yield running


def _run(server, step: PublishPhase, verb: str, argument: object) -> None:
    """Run a publisher that dies in phase ``step``."""
    options = server.options
    module = [sys.executable, "-m", "tests.serving.killed_publisher"]
    run = subprocess.run(
        [*module, options.work_dir, options.repository.path, step.name, verb, str(argument)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert run.stdout.split()[-1] == step.name


def _require_consistent(server, calls) -> None:
    """The active version is served, and no files are left behind."""
    repository = server.options.repository.path
    engine = ModelRepository(repository).pinned_members(NAME)["mood_onnx"]
    source = (repository / "mood_onnx" / str(engine) / "model.py").read_text()
    clear_up(ModelRepository(repository), servers_of(server.options.work_dir, repository))
    assert ModelRepository(repository).pinned_members(NAME)["mood_onnx"] == engine
    leftovers = {path.name for path in staging_folder(repository).iterdir()}
    assert leftovers == {"lock", "servers"}  # where its servers are listed
    assert sorted(path.name for path in repository.iterdir()) == ["mood", "mood_onnx", "mood_pre"]
    score = float(source.partition("dtype.type(")[2].partition(" ")[0])
    count_before = calls.counts[score]
    wait_until(lambda: calls.counts[score] > count_before + 5, 30, f"the answer {score}")
    wait_until(lambda: server.control.is_ready(), 30, "readiness")


@pytest.mark.parametrize("step", list(PublishPhase), ids=lambda step: step.name)
def test_a_killed_publication_leaves_the_old_state_or_the_new(server, step):
    repository = server.options.repository.path
    before, folders = (
        ModelRepository(repository).active_version(NAME),
        ModelRepository(repository).versions(NAME),
    )
    staged = stage(repository, 100 + list(PublishPhase).index(step))
    with under_load(server) as calls:
        _run(server, step, "publish", staged)
        is_new = ModelRepository(repository).active_version(NAME) != before
        assert is_new == (step not in BEFORE_THE_PIN)
        shutil.rmtree(staged)
        _require_consistent(server, calls)
    assert (ModelRepository(repository).versions(NAME) == folders) != is_new


@pytest.mark.parametrize("step", SWITCH_STEPS, ids=lambda step: step.name)
def test_a_killed_rollback_leaves_the_old_state_or_the_new(server, step):
    repository = server.options.repository.path
    before = ModelRepository(repository).active_version(NAME)
    other = next(
        version for version in ModelRepository(repository).versions(NAME) if version != before
    )
    with under_load(server) as calls:
        _run(server, step, "switch", other)
        expected = before if step in BEFORE_THE_PIN else other
        assert ModelRepository(repository).active_version(NAME) == expected
        _require_consistent(server, calls)
