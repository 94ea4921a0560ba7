"""Settings are read from real configs and applied to them."""

import importlib
from dataclasses import replace

import pytest
from tritonclient.grpc.model_config_pb2 import ModelConfig

from ensembles.text_embedding import PIPELINE
from modelspec.hardware import with_program
from modelspec.parameters import TUNED_PARAMETER
from modelspec.pbtxt import parse, render, to_proto
from serving.repository.configs import carried, meaning
from serving.tuning.setting import Roles, Setting, applied, roles, setting_of
from tests.serving.small_pipeline import pipeline


def configs_of(name):
    models = importlib.import_module(f"ensembles.{name}").PIPELINE.models
    return {spec.name: to_proto(spec) for spec in models}


@pytest.fixture
def configs():
    return configs_of("text_embedding")


def test_each_kind_of_pipeline_has_its_own_serving_parameters(configs):
    buckets = (16, 32, 64, 128, 256)
    assert setting_of(configs) == Setting(2, 1, 64, True, 0, buckets, 1)
    images = setting_of(configs_of("image_classification"))
    assert (images.buckets, images.pre_instances) == (None, 2)
    small = {spec.name: to_proto(spec) for spec in pipeline(0).models}
    assert setting_of(small) == Setting(
        instances=2, max_batch=8, dynamic_batching=False, pre_instances=1
    )


def test_an_engine_on_torch_has_the_serving_parameters_of_one_on_onnx_runtime(configs):
    specs = with_program(PIPELINE).models
    on_torch = {spec.name: to_proto(spec) for spec in specs}
    assert roles(on_torch).engine == "text_embedding_torch"
    assert setting_of(on_torch) == setting_of(configs)


def test_a_setting_is_read_back_as_applied(configs):
    setting = Setting(1, 2, 16, True, 500, (8, 256), 2)
    changed = applied(configs, setting)
    assert setting_of(changed) == setting
    assert setting_of({k: parse(render(v)) for k, v in changed.items()}) == setting
    assert {config.max_batch_size for config in changed.values()} == {16}
    batching = changed["text_embedding_onnx"].dynamic_batching
    assert [field.name for field, _ in batching.ListFields()] == ["max_queue_delay_microseconds"]
    assert Setting.from_dict(setting.as_dict()) == setting
    assert setting.changes(setting_of(configs)).startswith("instances 2 -> 1, threads 1 -> 2")


def test_dynamic_batching_is_switched_off_and_on(configs):
    before = setting_of(configs)
    off = replace(before, dynamic_batching=False, queue_delay_us=None)
    without = applied(configs, off)
    assert not without["text_embedding_onnx"].HasField("dynamic_batching")
    assert without["text_embedding_pre"] == configs["text_embedding_pre"]
    assert setting_of(without) == off
    assert applied(without, before) == configs
    engine = ModelConfig()
    engine.CopyFrom(configs["text_embedding_onnx"])
    engine.max_batch_size = 0  # nothing that could be merged
    assert setting_of({**configs, "text_embedding_onnx": engine}).dynamic_batching is None


def test_switched_off_dynamic_batching_survives_the_next_conversion(configs):
    declared = configs["text_embedding_onnx"]
    off = replace(setting_of(configs), dynamic_batching=False, queue_delay_us=None)
    published = applied(configs, off)["text_embedding_onnx"]
    published.parameters[TUNED_PARAMETER].string_value = "{}"
    assert meaning(published) == meaning(declared)
    assert carried(published, declared) == published
    assert carried(declared, published) == published  # nothing was committed to it


def test_applying_the_current_setting_changes_nothing(configs):
    assert applied(configs, setting_of(configs)) == configs


def test_a_later_generation_of_a_member_keeps_its_role(configs):
    renamed = dict(configs)
    renamed["text_embedding_onnx.g2"] = renamed.pop("text_embedding_onnx")
    renamed["text_embedding"].ensemble_scheduling.step[1].model_name = "text_embedding_onnx.g2"
    assert roles(renamed) == Roles("text_embedding", "text_embedding_onnx.g2", "text_embedding_pre")


def test_committed_serving_parameters_survive_the_next_conversion(configs):
    declared = configs["text_embedding_pre"]
    published = applied(configs, Setting(1, 2, 64, True, 500, (8, 16, 256), 2))[
        "text_embedding_pre"
    ]
    assert carried(published, declared) == declared  # not committed: nothing says it was measured
    published.parameters[TUNED_PARAMETER].string_value = "{}"
    assert meaning(published) == meaning(declared)
    merged = carried(published, declared)
    assert merged == published
    assert merged.parameters["buckets"].string_value == "8,16,256"


def test_the_longest_text_and_the_batch_size_belong_to_a_version(configs):
    declared = configs["text_embedding_pre"]
    for setting in (Setting(2, 1, 64, True, 0, (8, 128), 1), Setting(2, 1, 32, True, 0, None, 1)):
        assert meaning(applied(configs, setting)["text_embedding_pre"]) != meaning(declared)
