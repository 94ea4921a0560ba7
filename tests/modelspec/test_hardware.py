"""Config profiles for other hardware: written from the declaration, different only in where a model
runs."""

from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2 as pb

from ensembles.text_embedding import BUCKETS, PIPELINE
from modelspec.hardware import (
    STEP_INSTANCES,
    engine_of,
    hardware_configs,
    plan_config,
    with_plan,
    with_program,
)
from modelspec.model import ModelSpec, TensorSpec
from modelspec.pbtxt import parse, render, to_proto
from modelspec.staging import stage_model
from tests.modelspec.test_pbtxt import _specs

ROOT = Path(__file__).parent.parent.parent
ENGINE = engine_of(PIPELINE)
RUNS_ON = ("instance_group", "optimization", "backend", "default_model_filename", "parameters")


def _without(proto: pb.ModelConfig, *fields: str) -> pb.ModelConfig:
    copy = pb.ModelConfig()
    copy.CopyFrom(proto)
    for field in fields:
        copy.ClearField(field)
    return copy


@pytest.mark.parametrize("spec", list(_specs()), ids=lambda spec: spec.name)
def test_the_committed_profiles_are_what_the_declaration_says(spec):
    folder = ROOT / "model_repository" / spec.name / "configs"
    committed = {
        path.stem: path.read_text() for path in folder.glob("*.pbtxt") if path.stem != "tuned"
    }
    declared = {name: render(proto) for name, proto in hardware_configs(spec).items()}
    assert committed == declared
    assert bool(declared) == (spec.backend == "onnxruntime" or spec.step in STEP_INSTANCES)


def test_a_gpu_profile_differs_only_in_where_it_runs_and_padding_and_fp32_stays_fp32():
    gpu = hardware_configs(ENGINE)["gpu"]
    assert parse(render(gpu)) == gpu
    assert gpu.parameters["cuda_graph_lengths"].string_value == "16,32,64,128,256"
    del gpu.parameters["cuda_graph_lengths"]
    main = to_proto(ENGINE)
    for parameter in ("padding_mask", "padding_value"):  # padding is cut off on a CPU only
        assert parameter not in gpu.parameters
        del main.parameters[parameter]
    assert _without(gpu, *RUNS_ON[:2]) == _without(main, *RUNS_ON[:2])
    (group,) = gpu.instance_group
    assert (group.kind, group.count) == (pb.ModelInstanceGroup.KIND_GPU, 1)
    assert gpu.optimization.cuda.graphs
    (cuda,) = gpu.optimization.execution_accelerators.gpu_execution_accelerator
    options = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    assert (cuda.name, dict(cuda.parameters)) == ("cuda", options)


def test_the_steps_in_front_of_an_engine_on_a_gpu_run_in_more_processes():
    tokenizer = PIPELINE.members[0]
    gpu = hardware_configs(tokenizer)["gpu"]
    assert [(group.kind, group.count) for group in gpu.instance_group] == [
        (pb.ModelInstanceGroup.KIND_CPU, 4)
    ]
    assert _without(gpu, "instance_group") == _without(to_proto(tokenizer), "instance_group")


def test_an_engine_on_torch_is_wired_the_same_and_has_its_own_program_on_a_gpu():
    pipeline = with_program(PIPELINE)
    engine = engine_of(pipeline)
    assert (engine.name, engine.backend) == ("text_embedding_torch", "torch_export")
    assert [step.model for step in pipeline.public.steps] == [
        "text_embedding_pre",
        "text_embedding_torch",
    ]
    assert to_proto(engine).default_model_filename == ""  # the backend's own: model.pt2
    profiles = hardware_configs(engine)
    assert profiles["gpu"] == profiles["gpu-tensorrt"]
    gpu, main = profiles["gpu"], to_proto(engine)
    assert gpu.default_model_filename == "model.cuda.pt2"
    (group,) = gpu.instance_group
    assert (group.kind, group.count) == (pb.ModelInstanceGroup.KIND_GPU, 1)
    for parameter in ("padding_mask", "padding_value"):  # padding is cut off on a CPU only
        assert parameter not in gpu.parameters
        del main.parameters[parameter]
    varying = ("instance_group", "default_model_filename")
    assert _without(gpu, *varying) == _without(main, *varying)


def test_the_accelerator_is_an_option_and_gets_the_profiles():
    config = hardware_configs(ENGINE)["gpu-tensorrt"]
    first, second = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (first.name, second.name) == ("tensorrt", "cuda")
    assert not config.optimization.HasField("cuda")  # its operators are not all CUDA's
    shapes = first.parameters["trt_profile_max_shapes"].split(",")
    assert shapes == [
        f"{name}:64x{bucket}" for bucket in BUCKETS for name in ("input_ids", "attention_mask")
    ]
    assert first.parameters["trt_profile_min_shapes"].startswith("input_ids:1x1,attention_mask:1x1")
    assert first.parameters["precision_mode"] == "FP32"


def test_our_backend_reads_the_profiles_as_they_are_meant(monkeypatch):
    """The Python-based backend's own reading, with the providers of a build for GPUs."""
    from google.protobuf import json_format

    monkeypatch.syspath_prepend(str(ROOT / "serving" / "backends" / "onnxruntime"))
    from ort_session import choose_providers

    built_in = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    configs = {
        name: json_format.MessageToDict(proto, preserving_proto_field_name=True)
        for name, proto in hardware_configs(ENGINE).items()
    }
    gpu = choose_providers(configs["gpu"], "GPU", 0, built_in)
    assert [name for name, _ in gpu] == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert gpu[0][1]["device_id"] == "0"
    assert gpu[0][1]["use_tf32"] == "0"
    accelerated = choose_providers(configs["gpu-tensorrt"], "GPU", 0, built_in)
    assert [name for name, _ in accelerated] == built_in
    assert accelerated[0][1]["trt_max_workspace_size"] == str(4 << 30)
    assert "trt_profile_opt_shapes" in accelerated[0][1]


def test_the_plan_is_served_by_tensorrt_with_every_profile():
    plan = plan_config(ENGINE)
    assert (plan.backend, plan.default_model_filename) == ("tensorrt", "model.plan")
    (group,) = plan.instance_group
    assert (group.kind, list(group.profile)) == (
        pb.ModelInstanceGroup.KIND_GPU,
        [str(n) for n in range(len(BUCKETS))],
    )
    assert "intra_op_thread_count" not in plan.parameters
    assert _without(plan, *RUNS_ON) == _without(to_proto(ENGINE), *RUNS_ON)


def test_what_tensorrt_cannot_take_has_no_such_profile():
    table = ModelSpec("m", "onnxruntime", 4, (TensorSpec("city", "BYTES", (1,)),), ())
    assert set(hardware_configs(table)) == {"gpu"}
    with pytest.raises(ValueError, match="BYTES"):
        plan_config(table)
    assert hardware_configs(PIPELINE.public) == {}


def test_a_plan_replaces_the_graph_and_is_pinned():
    changed = with_plan(PIPELINE)
    assert [spec.name for spec in changed.models] == [
        "text_embedding_pre",
        "text_embedding_trt",
        "text_embedding",
    ]
    steps = to_proto(changed.public).ensemble_scheduling.step
    pins = [(step.model_name, step.model_version) for step in steps]
    assert pins == [("text_embedding_pre", 1), ("text_embedding_trt", 1)]
    # A machine without a GPU serves the graph beside the plan.
    assert to_proto(changed.members[1]).backend == "onnxruntime"


def test_the_plans_profile_is_staged_only_with_a_plan(tmp_path):
    graph, plan = tmp_path / "graph", tmp_path / "plan"
    graph.write_bytes(b"graph")
    plan.write_bytes(b"plan")
    folder = stage_model(tmp_path / "without", ENGINE, {"model.onnx": graph})
    assert sorted(path.name for path in (folder / "configs").iterdir()) == [
        "gpu-tensorrt.pbtxt",
        "gpu.pbtxt",
    ]
    engine = with_plan(PIPELINE).members[1]
    folder = stage_model(tmp_path / "with", engine, {"model.onnx": graph, "model.plan": plan})
    config = parse((folder / "configs" / "tensorrt.pbtxt").read_text())
    assert (config.name, config.backend) == ("text_embedding_trt", "tensorrt")
