"""A Triton started with --model-config-name serves newly published versions, under load."""

import pytest

from serving.errors import ServingError
from serving.publish.canary import canary_name, start, stop
from serving.publish.publish import publish
from serving.publish.versions import switch_to
from serving.repository.model_repository import ModelRepository
from tests.running import wait_until
from tests.serving.repository.test_config_profiles import in_step, tune
from tests.serving.small_pipeline import MODELS, NAME, stage
from tests.serving.small_server import online, serving_small_pipeline, under_load


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving_small_pipeline(tmp_path_factory.mktemp("tuned"), tune, "tuned") as running:
        yield running


def _answers(calls, number):
    count_before = calls.counts[number]
    wait_until(lambda: calls.counts[number] > count_before + 5, 30, f"the answer {number}")


def test_a_published_version_serves_with_the_tuned_config(server):
    repository, control = server.options.repository.path, server.control
    assert control.config(NAME).max_batch_size == 4
    assert control.config("mood_onnx").instance_group[0].count == 3
    with under_load(server) as calls:
        with online(server) as target:
            assert publish(ModelRepository(stage(repository, 5)), MODELS, target) == 2
        _answers(calls, 5)
        assert control.config(NAME).max_batch_size == 4
        assert control.config("mood_onnx").instance_group[0].count == 3
        assert list(control.config("mood_onnx").version_policy.specific.versions) == [2]
        with online(server) as target:
            switch_to(target, NAME, 1)
        _answers(calls, 0)
    assert set(calls.counts) == {0, 5}
    assert in_step(repository)["mood_onnx"] == 1


def test_a_canary_beside_it_has_the_tuned_config_too(server):
    with online(server) as target:
        start(target, NAME, 2)
        assert server.control.config(canary_name(NAME, 2)).max_batch_size == 4
        stop(target, NAME, 2)
    assert in_step(server.options.repository.path)["mood_onnx"] == 1


def test_an_engine_that_fails_leaves_the_tuned_version_serving(server):
    repository = server.options.repository.path
    staged = stage(repository, 9, initialize="1 / 0")
    with under_load(server) as calls:
        with online(server) as target, pytest.raises(ServingError):
            publish(ModelRepository(staged), MODELS, target)
        _answers(calls, 0)
    assert set(calls.counts) == {0}
    assert in_step(repository)["mood_onnx"] == 1
    wait_until(lambda: server.control.is_ready(), 30, "readiness")
