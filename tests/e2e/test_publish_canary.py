"""A canary beside the pipeline: other pins, the same engines, and it leaves no trace."""

import pytest

from serving.errors import PublishFailed
from serving.publish import canary
from serving.publish.publish import publish
from serving.publish.versions import prune, switch_to
from serving.repository.model_repository import ModelRepository
from tests.serving.small_pipeline import MODELS, NAME, stage
from tests.serving.small_server import ask, grpc, online, serving_small_pipeline, under_load


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Versions 1 (adds 0) and 2 (adds 10); 1 serves."""
    with serving_small_pipeline(tmp_path_factory.mktemp("canary")) as running:
        with online(running) as target:
            publish(ModelRepository(stage(target.repository.path, 10)), MODELS, target)
            switch_to(target, NAME, 1)
        yield running


def test_a_canary_serves_beside_the_pipeline_and_is_promoted(server):
    repository = server.options.repository.path
    with under_load(server) as calls, online(server) as target:
        assert canary.start(target, NAME, 2) == "mood.v2"
        with grpc.InferenceServerClient(server.control.address) as client:
            assert ask(client, "mood.v2") == 10
            assert ask(client, NAME) == 0
        assert set(calls.counts) == {0}
        assert canary.canaries(ModelRepository(repository), NAME) == [2]
        assert (
            "mood.v2" in ModelRepository(repository).public_models()
        )  # so it is reloaded after a restart
        canary.promote(target, NAME, 2)
        assert prune(target, NAME, keep=1)[0] == ["mood/1", "mood_onnx/1"]
        canary.stop(target, NAME, 2)
        with grpc.InferenceServerClient(server.control.address) as client:
            assert ask(client, NAME) == 10
    assert ModelRepository(repository).pinned_members(NAME) == {"mood_pre": 1, "mood_onnx": 2}
    assert sorted(path.name for path in repository.iterdir()) == ["mood", "mood_onnx", "mood_pre"]


def test_an_invalid_canary_is_refused(server):
    with online(server) as target:
        now = target.repository.active_version(NAME)
        with pytest.raises(PublishFailed, match="is already the active version"):
            canary.start(target, NAME, now)
        with pytest.raises(PublishFailed, match="has no version 99"):
            canary.start(target, NAME, 99)
        with pytest.raises(PublishFailed, match="no canary of version 99"):
            canary.promote(target, NAME, 99)
