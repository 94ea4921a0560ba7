"""From a Triton config to an ONNX Runtime session: which file, which options, which provider.

Parameters are those of NVIDIA's native backend. Threads: as there, ``intra_op_thread_count`` absent
or 0 means one thread per core *per instance*; instances are processes, so set it (cores /
instances) if there are several, or they compete for the cores. numpy's own pool never runs: nothing
here calls BLAS.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort
from ort_cpu import CPU, open_on_cpu
from ort_cuda import why_not_started
from ort_graph import Config, ModelRefused, Warn

REPOSITORY_VARIABLE = "TIDEGATE_MODEL_REPOSITORY"
DEFAULT_FILE = "model.onnx"
CUDA = "CUDAExecutionProvider"
TENSORRT, OPENVINO = "TensorrtExecutionProvider", "OpenVINOExecutionProvider"
Provider = tuple[str, dict[str, str]]

# How the native backend interprets optimization.graph.level; absent or 0 enables everything.
GRAPH_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    0: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
FLAGS = {"1": True, "true": True, "0": False, "false": False}
EXECUTION_MODES = {"0": ort.ExecutionMode.ORT_SEQUENTIAL, "1": ort.ExecutionMode.ORT_PARALLEL}

# Threads that spin while they wait take the core away from Triton, the other instances and every
# other model; ONNX Runtime spins by default. The config can set "1" again.
NO_SPINNING = {
    "session.intra_op.allow_spinning": "0",
    "session.inter_op.allow_spinning": "0",
}
RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"
ARENA_SHRINKAGE = "memory.enable_memory_arena_shrinkage"
NO_GRAPH = -1  # ONNX Runtime's number for a run that neither captures nor replays
CUDA_CHOICES = {
    "cudnn_conv_algo_search": {"0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT"},
    "arena_extend_strategy": {"0": "kNextPowerOfTwo", "1": "kSameAsRequested"},
}
CUDA_PARAMETERS = {*CUDA_CHOICES, "gpu_mem_limit", "do_copy_in_default_stream"}
# A parameter that begins like a native option but is not one is probably misspelled.
NATIVE_PREFIXES = (
    "intra_op", "inter_op", "execution_", "enable_mem", "memory.", "cudnn_", "gpu_mem", "arena_",
    "do_copy", "share_session", "optimization", "graph",
)  # fmt: skip
TENSORRT_NAMES = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
}
TENSORRT_PRECISIONS = {
    "FP32": {},
    "FP16": {"trt_fp16_enable": "True"},
    "BF16": {"trt_bf16_enable": "True"},
    "INT8": {"trt_int8_enable": "True"},
}
# Config files say 1 or true; the TensorRT provider's Python API expects True.
TENSORRT_FLAGS = (
    "_enable", "_native_calibration_table", "_subgraphs", "_engine_build", "_fallback",
    "_force_timing_cache", "_build_log", "trt_dump_ep_context_model",
)  # fmt: skip


def find_model_file(config: Config, folder: Path) -> Path:
    """The ONNX file in a version folder; ModelRefused if there is none."""
    file = folder / (config.get("default_model_filename") or DEFAULT_FILE)
    if file.is_dir():
        file = file / DEFAULT_FILE
    if not file.is_file():
        raise ModelRefused(
            f"model '{config['name']}': there is no {file}: put the ONNX file there, or name it "
            "in default_model_filename"
        )
    return file


def find_version_folder(config: Config, environment: Mapping[str, str] = os.environ) -> Path | None:
    """The folder of the newest version that Triton will serve; None if it cannot be found, for
    example because the environment does not name the repository."""
    paths = filter(None, environment.get(REPOSITORY_VARIABLE, "").split(os.pathsep))
    models = [Path(path) / config["name"] for path in paths]
    model = next((folder for folder in models if folder.is_dir()), None)
    if model is None:
        return None
    versions = {
        int(folder.name): folder
        for folder in model.iterdir()
        if folder.name.isascii() and folder.name.isdecimal()
    }
    policy = config.get("version_policy", {})
    if "specific" in policy:
        served = {int(version) for version in policy["specific"].get("versions", ())}
        versions = {number: versions[number] for number in versions.keys() & served}
    return versions[max(versions)] if versions else None


def open_session(
    config: Config, file: Path, providers: list[Provider], warn: Warn, threads: int = 0
) -> Any:
    """A session that runs where the config says; ModelRefused if it would run elsewhere.
    ``threads``: instead of those that the config says."""
    options = session_options(config, warn)
    if threads:
        options.intra_op_num_threads = threads
    for library in config.get("model_operations", {}).get("op_library_filename", ()):
        options.register_custom_ops_library(library)
    options.add_session_config_entry(RECORD_ASSIGNMENT, "1")
    session = _load(config, file, options, providers)
    missing = [name for name, _ in providers if name not in session.get_providers()]
    if missing:
        reason = why_not_started() if CUDA in missing else "see Triton's log"
        raise ModelRefused(
            f"model '{config['name']}': {', '.join(missing)} did not start on this machine: "
            f"{reason}. Correct that, or write kind: KIND_CPU"
        )
    return session


def operators(session: Any) -> dict[str, int]:
    """The number of the graph's operators on each provider, the most first: ONNX Runtime puts those
    that a provider lacks on the CPU."""
    counts = Counter[str]()
    for part in session.get_provider_graph_assignment_info():
        counts[part.ep_name] += len(part.get_nodes())
    return dict(counts.most_common())


def operator_names(session: Any) -> set[str]:
    """The types of the graph's operators."""
    parts = session.get_provider_graph_assignment_info()
    return {node.op_type for part in parts for node in part.get_nodes()}


def read_only_session(config: Config, file: Path) -> object:
    """A session for reading the graph: nothing is optimized, no TensorRT engine is built."""
    kinds = {group.get("kind") for group in config.get("instance_group", ())}
    gpu = "KIND_GPU" in kinds and CUDA in ort.get_available_providers()
    options = ort.SessionOptions()
    options.graph_optimization_level = GRAPH_LEVELS[2]
    options.intra_op_num_threads = 1
    for library in config.get("model_operations", {}).get("op_library_filename", ()):
        options.register_custom_ops_library(library)
    return _load(config, file, options, [(CUDA, {}), (CPU, {})] if gpu else [(CPU, {})])


def _load(config: Config, file: Path, options: object, providers: list[Provider]) -> Any:
    try:
        if providers == [(CPU, {})]:
            return open_on_cpu(file, options)
        # Without fallback: otherwise the Python package answers a failed run, or one that cannot
        # start, with a session on the CPU, and prints a line.
        return ort.InferenceSession(str(file), options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise ModelRefused(
            f"model '{config['name']}': ONNX Runtime {ort.__version__} cannot load {file}: {error}"
        ) from error


def string_parameters(config: Config) -> dict[str, str]:
    """The config's parameters as the native backend reads them: all values are strings."""
    parameters = config.get("parameters", {})
    return {name: value.get("string_value", "") for name, value in parameters.items()}


def session_options(config: Config, warn: Warn) -> Any:
    """ONNX Runtime's options for the config; warns of each unknown parameter."""
    parameters = string_parameters(config)
    options = ort.SessionOptions()
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    options.graph_optimization_level = GRAPH_LEVELS.get(level, GRAPH_LEVELS[0])
    for name, apply in OPTIONS.items():
        if name in parameters:
            _apply(config, name, apply, options, parameters[name])
    entries = {name: value for name, value in parameters.items() if name.startswith("session.")}
    for name, value in (NO_SPINNING | entries).items():
        options.add_session_config_entry(name, value)
    for text in _warnings(config, parameters, options.intra_op_num_threads):
        warn(f"model '{config['name']}': {text}")
    return options


def wants_graphs(config: Config) -> bool:
    """Whether the config says ``optimization { cuda { graphs: true } }``."""
    return bool(config.get("optimization", {}).get("cuda", {}).get("graphs"))


def without_graphs(config: Config) -> Config:
    """The config without its CUDA graphs."""
    optimization = {key: value for key, value in config["optimization"].items() if key != "cuda"}
    return {**config, "optimization": optimization}


def run_options(config: Config, graph: int = NO_GRAPH) -> object:
    """ONNX Runtime's options for a run, which captures or replays the CUDA graph of this number."""
    options = ort.RunOptions()
    if wants_graphs(config):
        options.add_run_config_entry("gpu_graph_id", str(graph))
    # A failed run is reported to its client; ONNX Runtime need not print it too.
    options.log_severity_level = 4
    shrinkage = string_parameters(config).get(ARENA_SHRINKAGE)
    if shrinkage:
        options.add_run_config_entry(ARENA_SHRINKAGE, shrinkage)
    return options


def _set(attribute: str, read: Callable[[str], Any]) -> Callable[[object, str], None]:
    return lambda options, value: setattr(options, attribute, read(value))


def _thread_count(value: str) -> int:
    # The native backend treats a negative count as not set.
    return max(0, int(value))


OPTIONS = {
    "intra_op_thread_count": _set("intra_op_num_threads", _thread_count),
    "inter_op_thread_count": _set("inter_op_num_threads", _thread_count),
    "execution_mode": _set("execution_mode", EXECUTION_MODES.__getitem__),
    "enable_mem_arena": _set("enable_cpu_mem_arena", lambda value: FLAGS[value.lower()]),
    "enable_mem_pattern": _set("enable_mem_pattern", lambda value: FLAGS[value.lower()]),
}


def _apply(
    config: Config, name: str, apply: Callable[[object, str], None], options: object, value: str
) -> None:
    try:
        apply(options, value)
    except (KeyError, ValueError):
        raise ModelRefused(
            f"model '{config['name']}': parameter '{name}' cannot be '{value}': write "
            + ("a number of threads" if name.endswith("_count") else "0 or 1")
        ) from None


def _warnings(config: Config, parameters: Mapping[str, str], threads: int) -> Iterable[str]:
    known = {*OPTIONS, *CUDA_PARAMETERS, ARENA_SHRINKAGE}
    for name in parameters.keys() - known:
        if name == "share_session_between_instances":
            yield f"parameter '{name}' is ignored: each instance is a process with its own session"
        elif name.startswith(NATIVE_PREFIXES):
            yield f"parameter '{name}' is not an option of this backend and is ignored"
    instances = sum(int(group.get("count", 1)) for group in config.get("instance_group", ()))
    if threads == 0 and instances > 1:
        yield (
            f"{instances} instances, each with a thread for every core, compete for the cores: set "
            "the parameter intra_op_thread_count (cores / instances)"
        )


def choose_providers(
    config: Config, kind: str, device_id: int, available: Iterable[str]
) -> list[Provider]:
    """Where to run, best first. ``kind`` is Triton's instance kind: CPU, GPU, AUTO or MODEL."""
    built_in = set(available)
    if kind == "GPU" and CUDA not in built_in:
        raise ModelRefused(
            f"model '{config['name']}': instance_group says KIND_GPU, but this onnxruntime build "
            f"has no {CUDA} (it has {', '.join(sorted(built_in))}): install onnxruntime-gpu, or "
            "write kind: KIND_CPU"
        )
    on_gpu = CUDA in built_in and kind in ("GPU", "AUTO")
    providers = _gpu_providers(config, device_id) if on_gpu else []
    providers += [
        _cpu_provider(config, accelerator) for accelerator in _accelerators(config, "cpu")
    ]
    for name, _ in providers:
        if name not in built_in:
            raise ModelRefused(
                f"model '{config['name']}': execution_accelerators ask for {name}, which this "
                f"onnxruntime build lacks (it has {', '.join(sorted(built_in))}): install a build "
                "with it, or remove the accelerator"
            )
    return [*providers, (CPU, {})]


def _accelerators(config: Config, device: str) -> list[Config]:
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    return list(accelerators.get(f"{device}_execution_accelerator", ()))


def _gpu_providers(config: Config, device_id: int) -> list[Provider]:
    device = {"device_id": str(device_id)}
    cuda, providers = device | _deprecated_cuda_options(config), []
    for accelerator in _accelerators(config, "gpu"):
        parameters = accelerator.get("parameters", {})
        if accelerator["name"] == "tensorrt":
            providers.append((TENSORRT, device | tensorrt_options(config, parameters)))
        elif accelerator["name"] == "cuda":
            cuda = cuda | parameters
        else:
            raise _unknown_accelerator(config, accelerator)
    if "enable_cuda_graph" in cuda:
        # Set alone, ONNX Runtime would replay the first request's graph for every other shape.
        raise ModelRefused(
            f"model '{config['name']}': remove the cuda accelerator's enable_cuda_graph, and write "
            "optimization { cuda { graphs: true } }"
        )
    if wants_graphs(config):
        cuda |= {"enable_cuda_graph": "1"}
    return [*providers, (CUDA, cuda)]


def _cpu_provider(config: Config, accelerator: Config) -> Provider:
    if accelerator["name"] != "openvino":
        raise _unknown_accelerator(config, accelerator)
    return OPENVINO, {"device_type": "CPU", **accelerator.get("parameters", {})}


def _unknown_accelerator(config: Config, accelerator: Config) -> ModelRefused:
    return ModelRefused(
        f"model '{config['name']}': unknown execution accelerator '{accelerator['name']}': use "
        "tensorrt or cuda on a GPU, openvino on a CPU"
    )


def _deprecated_cuda_options(config: Config) -> dict[str, str]:
    """CUDA options written as plain parameters, with the native backend's numbers translated."""
    options = {}
    for name, value in string_parameters(config).items():
        if name in CUDA_CHOICES and value not in CUDA_CHOICES[name]:
            raise ModelRefused(
                f"model '{config['name']}': parameter '{name}' cannot be '{value}': write one of "
                f"{', '.join(CUDA_CHOICES[name])}"
            )
        if name in CUDA_PARAMETERS:
            options[name] = CUDA_CHOICES.get(name, {}).get(value, value)
    return options


def tensorrt_options(config: Config, parameters: Mapping[str, str]) -> dict[str, str]:
    """The native backend's accelerator parameters under ONNX Runtime's names."""
    options: dict[str, str] = {}
    for key, value in parameters.items():
        name = TENSORRT_NAMES.get(key, key)
        if key == "precision_mode" and value in TENSORRT_PRECISIONS:
            options |= TENSORRT_PRECISIONS[value]
        elif name.startswith("trt_"):
            is_flag = name.endswith(TENSORRT_FLAGS)
            options[name] = str(FLAGS.get(value.lower(), value)) if is_flag else value
        else:
            raise ModelRefused(
                f"model '{config['name']}': the tensorrt accelerator does not know "
                f"{key} '{value}': precision_mode is one of {', '.join(TENSORRT_PRECISIONS)}"
            )
    return options
