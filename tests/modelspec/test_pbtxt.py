"""Configs are protos printed as text: they parse back, and the committed ones are up to date."""

import json
from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2

from modelspec.model import Batching, ModelSpec, StepSpec, TensorSpec
from modelspec.parameters import ENDPOINT_PARAMETER, GOLDEN_PARAMETER
from modelspec.pbtxt import parse, render, to_proto
from serving.repository.configs import carried
from tidegate.app.task_registry import KNOWN

ROOT = Path(__file__).parent.parent.parent
ONE = TensorSpec("x", "FP32", (-1,))


def _specs():
    import importlib

    for name in KNOWN:
        yield from importlib.import_module(f"ensembles.{name}").PIPELINE.models


@pytest.mark.parametrize("spec", list(_specs()), ids=lambda spec: spec.name)
def test_a_rendered_config_parses_back_to_the_same_proto(spec):
    proto = to_proto(spec)
    assert parse(render(proto)) == proto


@pytest.mark.parametrize("spec", list(_specs()), ids=lambda spec: spec.name)
def test_the_committed_config_is_what_the_declaration_says(spec):
    """Except for the serving parameters that ``tidegate optimize --commit`` measured and marked in
    the config."""
    committed = (ROOT / "model_repository" / spec.name / "config.pbtxt").read_text()
    assert committed == render(carried(parse(committed), to_proto(spec)))


@pytest.mark.parametrize("spec", list(_specs()), ids=lambda spec: spec.name)
def test_batched_models_batch_dynamically_and_without_a_queue_policy(spec):
    """With a queue policy, Triton 2.51 answers up to 0.5 s late."""
    proto = to_proto(spec)
    assert proto.HasField("dynamic_batching") == bool(spec.max_batch_size and not spec.steps)
    assert not proto.dynamic_batching.HasField("default_queue_policy")


def test_max_batch_size_0_is_written_out():
    text = render(to_proto(ModelSpec("m", "onnxruntime", 0, (ONE,), (ONE,))))
    assert "max_batch_size: 0" in text.splitlines()
    assert parse(text).max_batch_size == 0


def test_steps_are_pinned_and_the_config_has_the_endpoint_schema():
    from ensembles.text_embedding import ENDPOINT_SCHEMA, GOLDEN, PIPELINE

    proto = to_proto(PIPELINE.public)
    assert [step.model_version for step in proto.ensemble_scheduling.step] == [1, 1]
    endpoint_schema = json.loads(proto.parameters[ENDPOINT_PARAMETER].string_value)
    assert endpoint_schema["purpose"] == ENDPOINT_SCHEMA.purpose
    golden = json.loads(proto.parameters[GOLDEN_PARAMETER].string_value)
    assert golden["request"] == GOLDEN.request


def test_an_error_in_a_config_names_its_line():
    with pytest.raises(ValueError, match="2:1"):
        parse('name: "x"\nno_such_field: 1')


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda: TensorSpec("x", "FLOAT", (1,)), "unknown dtype 'FLOAT'"),
        (lambda: TensorSpec("x", "FP32", (0,)), "must be positive or -1"),
        (lambda: TensorSpec("", "FP32", (1,)), "needs a name"),
        (lambda: StepSpec("m", -1, {}, {}), "pin a version"),
        (lambda: ModelSpec("../m", "python", 0, (ONE,), (ONE,)), "illegal model name"),
        (lambda: ModelSpec("completions", "python", 0, (ONE,), (ONE,)), "reserved"),
        (lambda: ModelSpec("files", "python", 0, (ONE,), (ONE,)), "reserved"),
        (lambda: ModelSpec("m", "ensemble", 0, (ONE,), (ONE,)), "an ensemble has steps"),
        (lambda: ModelSpec("m", "python", -1, (ONE,), (ONE,)), "is negative"),
        (lambda: ModelSpec("m", "python", 0, (ONE,), (ONE,), batching=Batching()), "above 0"),
    ],
)
def test_a_spec_that_cannot_be_served_is_refused(broken, message):
    with pytest.raises(ValueError, match=message):
        broken()


def test_dtypes_are_those_of_triton():
    from modelspec.dtypes import ELEMENT_TYPES

    tritons = set(model_config_pb2.DataType.keys())
    assert {element.config_name for element in ELEMENT_TYPES.values()} <= tritons
