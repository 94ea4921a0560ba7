"""Settings are read from real configs and laid over them."""

import importlib

import pytest

from modelspec.pbtxt import parse, render, to_proto
from serving.pins import TUNED_PARAMETER, meaning
from serving.tuning.committed import carried
from serving.tuning.setting import Roles, Setting, applied, roles, setting_of
from tests.serving.small_pipeline import pipeline


def configs_of(name):
    models = importlib.import_module(f"ensembles.{name}").PIPELINE.models
    return {spec.name: to_proto(spec) for spec in models}


@pytest.fixture
def configs():
    return configs_of("text_embedding")


def test_each_kind_of_pipeline_says_its_own_knobs(configs):
    buckets = (16, 32, 64, 128, 256)
    assert setting_of(configs) == Setting(2, 1, 64, 0, buckets, 1)
    images = setting_of(configs_of("image_classification"))
    assert (images.buckets, images.pre_instances) == (None, 2)
    small = {spec.name: to_proto(spec) for spec in pipeline(0).models}
    assert setting_of(small) == Setting(instances=2, max_batch=8, pre_instances=1)


def test_a_setting_is_read_back_as_it_was_applied(configs):
    wanted = Setting(1, 2, 16, 500, (8, 256), 2)
    changed = applied(configs, wanted)
    assert setting_of(changed) == wanted
    assert setting_of({k: parse(render(v)) for k, v in changed.items()}) == wanted
    assert {each.max_batch_size for each in changed.values()} == {16}
    batching = changed["text_embedding_onnx"].dynamic_batching
    assert [field.name for field, _ in batching.ListFields()] == ["max_queue_delay_microseconds"]
    assert Setting.from_dict(wanted.as_dict()) == wanted
    assert wanted.changes(setting_of(configs)).startswith("instances 2 -> 1, threads 1 -> 2")


def test_the_setting_that_is_there_changes_nothing(configs):
    assert applied(configs, setting_of(configs)) == configs


def test_a_later_generation_of_a_member_keeps_its_role(configs):
    renamed = dict(configs)
    renamed["text_embedding_onnx.g2"] = renamed.pop("text_embedding_onnx")
    renamed["text_embedding"].ensemble_scheduling.step[1].model_name = "text_embedding_onnx.g2"
    assert roles(renamed) == Roles("text_embedding", "text_embedding_onnx.g2", "text_embedding_pre")


def test_committed_knobs_outlast_the_next_conversion(configs):
    declared = configs["text_embedding_pre"]
    published = applied(configs, Setting(1, 2, 64, 500, (8, 16, 256), 2))["text_embedding_pre"]
    assert carried(published, declared) == declared  # not committed: nothing says it was measured
    published.parameters[TUNED_PARAMETER].string_value = "{}"
    assert meaning(published) == meaning(declared)
    kept = carried(published, declared)
    assert kept == published
    assert kept.parameters["buckets"].string_value == "8,16,256"


def test_the_longest_text_and_the_batch_are_no_knobs_of_a_version(configs):
    declared = configs["text_embedding_pre"]
    for setting in (Setting(2, 1, 64, 0, (8, 128), 1), Setting(2, 1, 32, 0, None, 1)):
        assert meaning(applied(configs, setting)["text_embedding_pre"]) != meaning(declared)
