"""The golden samples in the configs of our own pipelines can be used as probes."""

import importlib
from contextlib import closing

import pytest
from tritonclient.grpc import service_pb2

from ensembles import causal_lm
from modelspec.declaration import Declaration
from modelspec.golden import Golden
from modelspec.pbtxt import to_proto
from serving.errors import PublishFailed
from serving.publish.plan import PlannedVersion
from serving.publish.preflight import available_bytes, require_memory
from serving.triton.control import TritonControl
from serving.triton.golden import IS_LATE, NO_RESPONSE, fault
from tests.serving.small_pipeline import pipeline
from tidegate.app.task_registry import KNOWN


@pytest.mark.parametrize("name", [name for name, task in KNOWN.items() if task])
def test_a_sample_fills_the_inputs_and_expects_outputs(name):
    config = to_proto(importlib.import_module(f"ensembles.{name}").PIPELINE.public)
    declaration = Declaration.of(config)
    assert declaration.error is None
    required = {tensor.name for tensor in config.input if not tensor.optional}
    assert required <= {tensor.name for tensor in declaration.probe.request.inputs}
    assert set(declaration.probe.golden.expect) <= {tensor.name for tensor in config.output}


def test_bytes_are_decoded():
    config = to_proto(importlib.import_module("ensembles.image_classification").PIPELINE.public)
    (raw,) = Declaration.of(config).probe.request.raw_input_contents
    assert raw[4:6] == b"\xff\xd8"  # a JPEG, after its length


def test_a_model_without_a_sample_has_none():
    assert Declaration.of(to_proto(pipeline(1).members[0])).probe is None


def test_too_little_memory_is_reported_with_the_numbers(tmp_path, monkeypatch):
    engine = pipeline(1).members[1]
    (tmp_path / "model.py").write_bytes(b"x" * 1024)
    version = PlannedVersion("mood_onnx", 2, to_proto(engine), tmp_path)
    monkeypatch.setattr("serving.publish.preflight.available_bytes", lambda: 100 * 2**20)
    with pytest.raises(PublishFailed, match=r"need about 340 MiB .* 100 MiB are available"):
        require_memory([version], [2**22 + 1])  # no such process
    require_memory([version], [])  # no server: nothing is loaded twice


def test_a_containers_memory_limit_counts(tmp_path):
    machine = available_bytes(tmp_path)
    assert machine > 2**20
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("0")
    assert available_bytes(tmp_path) == pytest.approx(machine, rel=0.3)
    (tmp_path / "memory.max").write_text(f"{2**20}\n")
    (tmp_path / "memory.current").write_text("1024")
    assert available_bytes(tmp_path) == 2**20 - 1024


@pytest.mark.parametrize(
    ("error", "is_late"),
    [("[tidegate:no_capacity] 64 requests are waiting", True), ("the engine failed", False)],
)
def test_a_language_model_that_is_full_is_late_not_wrong(monkeypatch, error, is_late):
    """Else a flood of streams would have the model loaded again."""
    model = causal_lm.Declaration(
        "llm", Golden({"text_input": "a"}, {"text_output": ["b"]}, 0.0), "llama", 512, "", {}, ()
    )
    response = service_pb2.ModelStreamInferResponse(error_message=error)
    with closing(TritonControl("127.0.0.1:1", "")) as control:
        monkeypatch.setattr(control, "_call", lambda *_: iter([response]))
        problem = fault(control, "llm", to_proto(model.pipeline().public))
    assert problem.startswith(NO_RESPONSE)
    assert problem.endswith(IS_LATE) == is_late
