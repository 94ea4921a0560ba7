"""An engine's config profiles for other hardware: ``configs/NAME.pbtxt``, which Triton's
``--model-config-name`` selects.

    gpu            ONNX Runtime on CUDA; as many of the steps in front as such an engine needs
    gpu-tensorrt   the same with its TensorRT accelerator, which builds engines while it loads
    tensorrt       Triton's TensorRT backend on ``model.plan``; written only where a plan was built

They differ from ``config.pbtxt`` only in where the model runs, in how many processes, and in that
padding is computed: on a CPU it is cut off. A model
without the config profile that Triton was started with is served by its ``config.pbtxt``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tritonclient.grpc import model_config_pb2 as pb

from modelspec.layout import GPU_PROGRAM_FILE, PLAN_FILE
from modelspec.model import ModelSpec, Pipeline
from modelspec.names import Role, member_name
from modelspec.parameters import INTER_OP_THREADS, INTRA_OP_THREADS, PADDING_MASK, PADDING_VALUE
from modelspec.pbtxt import to_proto
from modelspec.profiles import Profile, profiles_of

LANGUAGE_MODEL_BACKEND, VLLM = "openvino_genai", "vllm"
TORCH, TORCH_BACKEND = "torch", "torch_export"
GPU, GPU_TENSORRT, TENSORRT = "gpu", "gpu-tensorrt", "tensorrt"
# TF32 would keep only 11 bits of what is declared and was proved as FP32.
# HEURISTIC finds convolution algorithms as fast as ONNX Runtime's default, EXHAUSTIVE, does, in a
# third of the time: 0.07 to 0.5 s for a batch size of EfficientNet on an H200 (docs/gpu.md).
CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
GRAPH_LENGTHS = "cuda_graph_lengths"
# Processes of the steps that keep a core busy in front of an engine on a GPU, by step; a machine
# with a GPU has eight cores and more for it.
STEP_INSTANCES = {"tokenize_text": 4, "decode_image": 8}
WORKSPACE_BYTES = 4 << 30
# On a GPU a run costs the same with padding, and CUDA graphs want the buckets' own lengths.
_CPU_ONLY = (PADDING_MASK, PADDING_VALUE)
_ONNX_RUNTIME_ONLY = (INTRA_OP_THREADS, INTER_OP_THREADS, *_CPU_ONLY)


def hardware_configs(spec: ModelSpec) -> dict[str, pb.ModelConfig]:
    """The config profiles that every ONNX or torch engine and every step in front of one has, by
    name; {} for other models."""
    if spec.backend == TORCH_BACKEND:
        proto = to_proto(spec)
        proto.default_model_filename = GPU_PROGRAM_FILE
        _move_to_gpu(proto)
        return {GPU: proto, GPU_TENSORRT: proto}
    if spec.step in STEP_INSTANCES:
        proto = to_proto(spec)
        proto.instance_group[0].count = STEP_INSTANCES[spec.step]
        return {GPU: proto, GPU_TENSORRT: proto}
    if spec.backend != "onnxruntime":
        return {}
    configs = {GPU: _with_cuda_graphs(_on_gpu(spec), spec.lengths)}
    try:
        shapes = profiles_of(spec)
    except ValueError:
        return configs  # TensorRT cannot take these tensors
    configs[GPU_TENSORRT] = _on_gpu(spec)
    # Before CUDA: ONNX Runtime assigns each operator to the first provider that takes it.
    accelerators = configs[GPU_TENSORRT].optimization.execution_accelerators
    cuda = accelerators.gpu_execution_accelerator.pop()
    accelerators.gpu_execution_accelerator.add(
        name="tensorrt", parameters=_accelerator_options(shapes)
    )
    accelerators.gpu_execution_accelerator.append(cuda)
    return configs


def plan_config(spec: ModelSpec) -> pb.ModelConfig:
    """The config profile that serves an ONNX engine's plan; ValueError where TensorRT cannot take
    the engine."""
    proto = to_proto(spec)
    proto.backend = "tensorrt"
    proto.default_model_filename = PLAN_FILE
    del proto.instance_group[:]
    # Triton uses only the first optimization profile unless the others are listed.
    names = map(str, range(len(profiles_of(spec))))
    proto.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_GPU, profile=names)
    for key in _ONNX_RUNTIME_ONLY:
        proto.parameters.pop(key, None)
    return proto


def engine_of(pipeline: Pipeline) -> ModelSpec:
    """The model that holds the trained one: a member, or a language model itself; ValueError for a
    pipeline without one."""
    for spec in pipeline.models:
        if spec.backend in ("onnxruntime", TORCH_BACKEND, LANGUAGE_MODEL_BACKEND):
            return spec
    raise ValueError(f"{pipeline.name} has no engine")


def with_plan(pipeline: Pipeline) -> Pipeline:
    """The pipeline with ``NAME_trt`` in place of ``NAME_onnx``: wired and pinned the same way."""
    return _with_engine(pipeline, Role.PLAN, engine_of(pipeline).backend)


def with_program(pipeline: Pipeline) -> Pipeline:
    """The pipeline with ``NAME_torch`` in place of ``NAME_onnx``, on our backend for torch."""
    return _with_engine(pipeline, Role.PROGRAM, TORCH_BACKEND)


def _with_engine(pipeline: Pipeline, role: Role, backend: str) -> Pipeline:
    old, new = engine_of(pipeline).name, member_name(pipeline.name, role)
    members = tuple(
        replace(member, name=new, backend=backend) if member.name == old else member
        for member in pipeline.members
    )
    public = pipeline.public
    steps = tuple(replace(step, model=new) if step.model == old else step for step in public.steps)
    return Pipeline(members, replace(public, steps=steps))


def _on_gpu(spec: ModelSpec) -> pb.ModelConfig:
    proto = to_proto(spec)
    _move_to_gpu(proto)
    accelerators = proto.optimization.execution_accelerators
    accelerators.gpu_execution_accelerator.add(name="cuda", parameters=CUDA_OPTIONS)
    return proto


def _move_to_gpu(proto: pb.ModelConfig) -> None:
    del proto.instance_group[:]
    # One instance per GPU: a second one competes for it and loads the weights again.
    proto.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_GPU)
    for key in _CPU_ONLY:
        proto.parameters.pop(key, None)


def _with_cuda_graphs(proto: pb.ModelConfig, lengths: Sequence[int]) -> pb.ModelConfig:
    """Twice the texts a second at 16 connections on an H200 (docs/gpu.md). Where no graph can be
    captured the backend serves the model without."""
    proto.optimization.cuda.graphs = True
    if lengths:
        proto.parameters[GRAPH_LENGTHS].string_value = ",".join(map(str, lengths))
    return proto


def _accelerator_options(shapes: Sequence[Profile]) -> Mapping[str, str]:
    """ONNX Runtime's option names. Without profiles it builds an engine at the first request, and
    again for each shape that it has not seen."""
    ranges = [(name, shape) for profile in shapes for name, shape in profile.items()]
    bounds = {
        "trt_profile_min_shapes": [(name, shape.least) for name, shape in ranges],
        "trt_profile_opt_shapes": [(name, shape.usual) for name, shape in ranges],
        "trt_profile_max_shapes": [(name, shape.most) for name, shape in ranges],
    }
    profile_options = {
        key: ",".join(f"{name}:{'x'.join(map(str, dims))}" for name, dims in pairs)
        for key, pairs in bounds.items()
    }
    # The precision is the graph's own: TensorRT 11 takes no other.
    limits = {"precision_mode": "FP32", "max_workspace_size_bytes": str(WORKSPACE_BYTES)}
    return {**limits, **profile_options}
