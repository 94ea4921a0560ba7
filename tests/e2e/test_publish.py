"""Publishing beside a running Triton, under load: no request fails, whatever is published."""

import pytest

from serving.errors import ModelLoadFailed, PublishFailed
from serving.publish.publish import publish
from serving.publish.versions import prune, switch_to
from serving.repository.model_repository import ModelRepository
from serving.triton.stubs import live_stubs
from tests.running import wait_until
from tests.serving.small_pipeline import MODELS, NAME, stage
from tests.serving.small_server import online, serving_small_pipeline, under_load


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving_small_pipeline(tmp_path_factory.mktemp("publish")) as running:
        yield running


def _versions(server, model: str) -> dict[str, str]:
    return {entry.version: entry.state for entry in server.control.index() if entry.name == model}


def test_publish_and_roll_back_under_load(server):
    steps = {live_stub for live_stub in live_stubs(server.pid) if live_stub.model == "mood_pre"}
    with under_load(server) as calls, online(server) as target:
        publish(ModelRepository(stage(target.repository.path, 10)), MODELS, target)
        assert steps <= live_stubs(server.pid)  # an unchanged member is not reloaded
        wait_until(lambda: calls.counts[10] > 20, 30, "answers of the new version")
        assert _versions(server, "mood_pre") == {"1": "READY"}
        switch_to(target, NAME, None)
        before = calls.counts[10]
        wait_until(lambda: calls.counts[0] > before, 30, "answers of the old version")
        switch_to(target, NAME, 2)
        assert set(calls.counts) == {0, 10}
    assert not (target.repository.path / "mood.candidate").exists()


def test_old_versions_are_unloaded_and_stay_on_disk(server):
    with online(server) as target:
        publish(ModelRepository(stage(target.repository.path, 12)), MODELS, target)
        wait_until(
            lambda: list(_versions(server, "mood_onnx").values()).count("READY") == 1,
            30,
            "the old version unloaded",
        )
        assert len(list((target.repository.path / "mood_onnx").iterdir())) > 2
        wait_until(lambda: server.control.is_ready(), 30, "readiness")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"initialize": "raise RuntimeError('broken')"}, ModelLoadFailed, "broken"),
        ({"golden": 99}, PublishFailed, "answers its golden sample wrongly in score"),
    ],
    ids=["does not load", "answers wrongly"],
)
def test_a_wrong_version_is_not_published_and_readiness_recovers(server, options, error, message):
    with under_load(server), online(server) as target:
        serving = _state(target.repository.path)
        with pytest.raises(error, match=message):
            publish(ModelRepository(stage(target.repository.path, 20, **options)), MODELS, target)
        assert _state(target.repository.path) == serving
        wait_until(lambda: server.control.is_ready(), 30, "readiness")


def test_a_first_publication_that_does_not_load_leaves_nothing(server):
    repository = server.options.repository.path
    staged = stage(repository, 1, initialize="raise RuntimeError('broken')")
    for model in MODELS:
        (staged / model).rename(staged / model.replace("mood", "gloom"))
    for config in staged.glob("*/config.pbtxt"):
        config.write_text(config.read_text().replace("mood", "gloom"))
    models = [model.replace("mood", "gloom") for model in MODELS]
    with under_load(server), online(server) as target:
        with pytest.raises(ModelLoadFailed, match="broken"):
            publish(ModelRepository(staged), models, target)
        wait_until(lambda: server.control.is_ready(), 30, "readiness")
    assert not list(repository.glob("gloom*"))


def test_prune_beside_a_running_server(server):
    with under_load(server), online(server) as target:
        assert prune(target, NAME, keep=1)[0]
        publish(ModelRepository(stage(target.repository.path, 30)), MODELS, target)


def _state(repository) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in repository.rglob("*") if p.is_file()}
