"""The parts of the onnxruntime backend that need no Triton, over the real ONNX Runtime."""

import copy
import ctypes
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import EPFail

import serving.backends

FOLDER = Path(serving.backends.__file__).parent / "onnxruntime"
# Triton puts the backend's folder last on the path of each stub; so do we.
sys.path.append(str(FOLDER))

import ort_requests  # noqa: E402 - found through the line above
from ort_batch import Runner  # noqa: E402
from ort_cuda import why_not_started  # noqa: E402
from ort_cuda_graph import graph_shapes  # noqa: E402
from ort_graph import (  # noqa: E402
    Graph,
    GraphTensor,
    ModelRefused,
    check_config,
    complete_config,
    drop_empty_reshape,
    is_complete,
)
from ort_jobs import (  # noqa: E402
    MARKER,
    BatchError,
    InvalidInput,
    Job,
    RunFailed,
)
from ort_lengths import (  # noqa: E402
    RUN_COST,
    Sequences,
    merge_unlike_shapes,
    similar,
)
from ort_session import (  # noqa: E402
    NO_SPINNING,
    choose_providers,
    find_model_file,
    find_version_folder,
    open_session,
    operators,
    read_only_session,
    run_options,
    session_options,
    tensorrt_options,
)

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
FLOAT = TensorProto.FLOAT


def value(name: str, element_type: int, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element_type, list(shape))


def session_of(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    *initializers: onnx.TensorProto,
) -> Any:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(initializers))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return ort.InferenceSession(model.SerializeToString(), providers=[CPU])


def identity(element_type: int = FLOAT, *shape: int | str) -> Any:
    return session_of(
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", element_type, *shape)],
        [value("y", element_type, *shape)],
    )


def addition() -> Any:
    nodes = [
        helper.make_node("Add", ["a", "b"], ["total"]),
        helper.make_node("Sub", ["a", "b"], ["difference"]),
    ]
    names = ("a", "b"), ("total", "difference")
    inputs, outputs = ([value(name, FLOAT, "N", "L") for name in side] for side in names)
    return session_of(nodes, inputs, outputs)


def lookup() -> Any:
    table = numpy_helper.from_array(np.array([10, 20, 30], np.float32), "table")
    return session_of(
        [helper.make_node("Gather", ["table", "index"], ["y"])],
        [value("index", TensorProto.INT64, "N", 1)],
        [value("y", FLOAT, "N", 1)],
        table,
    )


def entry(name: str, data_type: str = "TYPE_FP32", *dims: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "data_type": data_type, "dims": list(dims), **more}


def config(**fields: Any) -> dict[str, Any]:
    return {"name": "m", "max_batch_size": 0, "input": [], "output": [], **fields}


def parameters(**texts: str) -> dict[str, Any]:
    return config(parameters={k: {"string_value": v} for k, v in texts.items()})


class Counting:
    """A session that counts its runs, and records the number of rows of each."""

    def __init__(self, session: Any) -> None:
        self.session, self.runs = session, 0
        self.rows: list[int] = []

    def run(self, names: Any, feeds: dict[str, Any], options: Any) -> Any:
        self.runs += 1
        self.rows.append(len(np.atleast_1d(next(iter(feeds.values())))))
        return self.session.run(names, feeds, options)


def runner(session: Any, **fields: Any) -> tuple[Runner, Counting]:
    graph, counting = Graph.read(session), Counting(session)
    full = config(**fields)
    complete_config(full, graph)
    check_config(full, graph, pytest.fail)
    return Runner(full, graph, counting), counting


def job(runner: Runner, *requested: str, **feeds: Any) -> Job:
    return runner.job(
        {name: np.asarray(array) for name, array in feeds.items()}, frozenset(requested)
    )


class TestCompleteConfig:
    def test_open_first_axes_mean_batching(self) -> None:
        full = config()
        complete_config(full, Graph.read(identity(FLOAT, "N", 3)))
        assert full["max_batch_size"] == 4
        assert full["dynamic_batching"] == {}
        assert full["input"] == [entry("x", "TYPE_FP32", 3)]
        assert full["output"] == [entry("y", "TYPE_FP32", 3)]

    def test_a_fixed_first_axis_means_none(self) -> None:
        full = config()
        complete_config(full, Graph.read(identity(FLOAT, 8, "L")))
        assert full["max_batch_size"] == 0
        assert "dynamic_batching" not in full
        assert full["input"] == [entry("x", "TYPE_FP32", 8, -1)]

    @pytest.mark.parametrize(
        ("shape", "max_batch_size"), [((), 0), (("N",), 4)], ids=["scalar", "one value per row"]
    )
    def test_no_dims_are_written_as_one(self, shape: tuple[str, ...], max_batch_size: int) -> None:
        full = config()
        complete_config(full, Graph.read(identity(FLOAT, *shape)))
        assert full["max_batch_size"] == max_batch_size
        assert full["input"][0]["dims"] == [1]
        assert "reshape" not in full["input"][0]

    def test_what_is_written_is_kept(self) -> None:
        written = entry("x", "TYPE_FP32", 7)
        full = config(max_batch_size=32, input=[written], sequence_batching={})
        complete_config(full, Graph.read(identity(FLOAT, "N", "L")))
        assert full["max_batch_size"] == 32
        assert full["input"] == [written]
        assert "dynamic_batching" not in full

    def test_an_output_that_is_not_listed_is_not_added(self) -> None:
        full = config(output=[entry("total", "TYPE_INVALID")])
        complete_config(full, Graph.read(addition()))
        assert full["output"] == [entry("total", "TYPE_FP32", -1)]

    def test_dims_of_full_rank_mean_no_batch_axis(self) -> None:
        full = config(input=[entry("x", "TYPE_FP32", -1, -1)])
        complete_config(full, Graph.read(identity(FLOAT, "N", "L")))
        assert full["max_batch_size"] == 0
        assert full["output"][0]["dims"] == [-1, -1]

    def test_is_complete(self) -> None:
        full = config(input=[entry("x", "TYPE_FP32", 1)], output=[entry("y", "TYPE_FP32", 1)])
        assert is_complete(full)
        assert not is_complete(full | {"output": []})
        assert not is_complete(full | {"output": [entry("y")]})
        assert not is_complete(full | {"output": [entry("y", "TYPE_INVALID", 1)]})

    def test_only_an_empty_reshape_is_dropped(self) -> None:
        full = config(
            input=[entry("x", "TYPE_FP32", 1, reshape={"shape": []})],
            output=[entry("y", "TYPE_FP32", 4, reshape={"shape": [2, 2]})],
        )
        drop_empty_reshape(full)
        assert full["input"] == [entry("x", "TYPE_FP32", 1)]
        assert full["output"][0]["reshape"] == {"shape": [2, 2]}

    @pytest.mark.parametrize(
        ("onnx_type", "advice"),
        [
            ("tensor(bfloat16)", "cast it to FP32"),
            ("seq(map(int64,tensor(float)))", "zipmap"),
        ],
    )
    def test_what_triton_cannot_carry_is_refused(self, onnx_type: str, advice: str) -> None:
        graph = Graph({}, {}, {"y": GraphTensor("y", onnx_type, ("N",))})
        with pytest.raises(ModelRefused, match=r"model 'm' output tensor 'y': .*") as caught:
            complete_config(config(), graph)
        assert onnx_type in str(caught.value)
        assert advice in str(caught.value)


class TestCheckConfig:
    GRAPH = Graph(
        {"x": GraphTensor("x", "tensor(float)", ("N", 3))},
        {"scale": GraphTensor("scale", "tensor(float)", (1,))},
        {"y": GraphTensor("y", "tensor(float)", ("N", "L"))},
    )
    GOOD = config(
        max_batch_size=4,
        input=[entry("x", "TYPE_FP32", 3)],
        output=[entry("y", "TYPE_FP32", -1)],
    )

    def test_agreement(self) -> None:
        check_config(self.GOOD, self.GRAPH, pytest.fail)

    @pytest.mark.parametrize(
        ("field", "entries", "text"),
        [
            ("input", [], "input tensor 'x': the graph needs it"),
            ("output", [entry("z", "TYPE_FP32", 1)], "output tensor 'z': .* the graph has"),
            ("input", [entry("x", "TYPE_FP64", 3)], "says TYPE_FP64, the graph says TYPE_FP32"),
            ("input", [entry("x", "TYPE_FP32", 4)], r"says dims \[4\], the graph says \[-1, 3\]"),
            ("input", [entry("x", "TYPE_FP32", 1, 3)], r"write dims: \[3\]"),
            ("output", [entry("y", "TYPE_FP32", 9)], r"write dims: \[-1\]"),
            ("input", [entry("x", "TYPE_FP32", 3, optional=True)], "the graph has no default"),
            ("batch_input", [{"kind": "BATCH_ELEMENT_COUNT"}], "uses batch_input"),
            ("batch_output", [{"kind": "BATCH_SCATTER"}], "uses batch_output"),
            ("sequence_batching", {"state": [{}]}, "uses sequence_batching.state"),
        ],
    )
    def test_disagreement(self, field: str, entries: Any, text: str) -> None:
        with pytest.raises(ModelRefused, match=f"model 'm'.*{text}"):
            check_config({**self.GOOD, field: entries}, self.GRAPH, pytest.fail)

    def test_an_axis_that_the_graph_leaves_open_may_be_fixed_in_an_input(self) -> None:
        graph = Graph.read(identity(FLOAT, "N", "L"))
        full = config(
            input=[entry("x", "TYPE_FP32", 2, 5)], output=[entry("y", "TYPE_FP32", -1, -1)]
        )
        check_config(full, graph, pytest.fail)

    def test_a_reshape_is_what_the_graph_gets(self) -> None:
        graph = Graph.read(identity(FLOAT, "N", 2, 2))
        reshaped = {"reshape": {"shape": ["2", "2"]}}
        full = config(
            max_batch_size=4,
            input=[entry("x", "TYPE_FP32", 4, **reshaped)],
            output=[entry("y", "TYPE_FP32", 4, **reshaped)],
        )
        check_config(full, graph, pytest.fail)

    def test_a_batch_needs_an_open_first_axis(self) -> None:
        full = config(max_batch_size=4, input=[entry("x", "TYPE_FP32", 3)])
        with pytest.raises(ModelRefused, match=r"fixes the first axis.*write max_batch_size: 0"):
            check_config(full, Graph.read(identity(FLOAT, 8, 3)), pytest.fail)

    def test_dims_of_an_undeclared_shape_are_warned_of(self) -> None:
        tensors = (
            {"x": GraphTensor("x", "tensor(float)", ())},
            {"y": GraphTensor("y", "tensor(float)", ())},
        )
        full = config(input=[entry("x", "TYPE_FP32", 1)], output=[entry("y", "TYPE_FP32", 5)])
        warnings: list[str] = []
        check_config(full, Graph(tensors[0], {}, tensors[1]), warnings.append)
        assert len(warnings) == 1
        assert "output tensor 'y': the graph declares no shape" in warnings[0]

    def test_sequence_controls_count_as_inputs(self) -> None:
        control = {"sequence_batching": {"control_input": [{"name": "x"}]}}
        check_config({**self.GOOD, "input": [], **control}, self.GRAPH, pytest.fail)


class TestFiles:
    def test_the_newest_version_unless_the_policy_says_which(self, tmp_path: Path) -> None:
        for name in ("2", "9", "10", "notes"):
            (tmp_path / "models" / "m" / name).mkdir(parents=True)
        paths = os.pathsep.join([str(tmp_path / "empty"), str(tmp_path / "models")])
        environment = {"TIDEGATE_MODEL_REPOSITORY": paths}

        def version_of(**policy: Any) -> str:
            folder = find_version_folder(config(**policy), environment)
            return folder.name if folder else "none"

        assert version_of() == "10"
        assert version_of(version_policy={"latest": {"num_versions": 2}}) == "10"
        assert version_of(version_policy={"specific": {"versions": ["2", 9]}}) == "9"
        assert version_of(version_policy={"specific": {"versions": [7]}}) == "none"
        assert find_version_folder(config(), {}) is None

    def test_the_file_may_have_another_name_or_be_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "big").mkdir()
        for file in ("model.onnx", "other.onnx", "big/model.onnx"):
            (tmp_path / file).touch()
        names = {"": "model.onnx", "other.onnx": "other.onnx", "big": "big/model.onnx"}
        for name, file in names.items():
            assert find_model_file(config(default_model_filename=name), tmp_path) == tmp_path / file
        with pytest.raises(ModelRefused, match=r"model 'm': there is no .*default_model_filename"):
            find_model_file(config(default_model_filename="x.onnx"), tmp_path)

    def test_a_file_that_is_not_onnx_is_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "model.onnx"
        file.write_bytes(b"not a model")
        with pytest.raises(ModelRefused, match=r"model 'm': ONNX Runtime .* cannot load"):
            read_only_session(config(), file)
        with pytest.raises(ModelRefused, match="cannot load"):
            open_session(config(), file, [(CPU, {})], pytest.fail)

    def test_a_provider_that_did_not_start_is_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "model.onnx"
        file.touch()
        session = SimpleNamespace(get_providers=lambda: [CPU])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ort, "InferenceSession", lambda *_, **__: session)
            assert open_session(config(), file, [(CPU, {})], pytest.fail) is session
            with pytest.raises(ModelRefused, match=f"model 'm': {CUDA} did not start"):
                open_session(config(), file, [(CUDA, {}), (CPU, {})], pytest.fail)


class TestSessionOptions:
    def test_defaults_are_the_native_ones_without_spinning(self) -> None:
        options = session_options(config(), pytest.fail)
        assert options.intra_op_num_threads == 0
        assert options.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL
        assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        for name in NO_SPINNING:
            assert options.get_session_config_entry(name) == "0"

    def test_parameters(self) -> None:
        values = {
            "intra_op_thread_count": "3",
            "inter_op_thread_count": "-1",
            "execution_mode": "1",
            "enable_mem_arena": "0",
            "enable_mem_pattern": "false",
            "session.intra_op.allow_spinning": "1",
            "tidegate.endpoint": "{}",
        }
        options = session_options(parameters(**values), pytest.fail)
        assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 0)
        assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL
        assert (options.enable_cpu_mem_arena, options.enable_mem_pattern) == (False, False)
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"

    @pytest.mark.parametrize(
        ("level", "name"),
        [
            (-1, "ORT_ENABLE_BASIC"),
            (0, "ORT_ENABLE_ALL"),
            (1, "ORT_ENABLE_EXTENDED"),
            (2, "ORT_DISABLE_ALL"),
        ],
    )
    def test_graph_level(self, level: int, name: str) -> None:
        options = session_options(config(optimization={"graph": {"level": level}}), pytest.fail)
        assert options.graph_optimization_level == getattr(ort.GraphOptimizationLevel, name)

    @pytest.mark.parametrize(
        ("name", "text"),
        [("intra_op_thread_count", "two"), ("execution_mode", "2"), ("enable_mem_arena", "on")],
    )
    def test_an_invalid_value_is_refused(self, name: str, text: str) -> None:
        with pytest.raises(ModelRefused, match=f"parameter '{name}' cannot be '{text}'"):
            session_options(parameters(**{name: text}), pytest.fail)

    @pytest.mark.parametrize(
        "name", ["intra_op_threads", "enable_mem_arenas", "share_session_between_instances"]
    )
    def test_a_parameter_like_a_native_one_is_warned_of(self, name: str) -> None:
        warnings: list[str] = []
        session_options(parameters(**{name: "1"}), warnings.append)
        assert len(warnings) == 1
        assert f"model 'm': parameter '{name}'" in warnings[0]

    def test_instances_that_would_compete_for_the_cores_are_warned_of(self) -> None:
        warnings: list[str] = []
        session_options(config(instance_group=[{"count": 1}, {"count": 2}]), warnings.append)
        assert "3 instances" in warnings[0]

    def test_run_options(self) -> None:
        name = "memory.enable_memory_arena_shrinkage"
        options = run_options(parameters(**{name: "cpu:0"}))
        assert options.get_run_config_entry(name) == "cpu:0"
        assert options.log_severity_level == 4


class TestProviders:
    TRT = config(
        optimization={
            "execution_accelerators": {
                "gpu_execution_accelerator": [
                    {"name": "tensorrt", "parameters": {"precision_mode": "FP16"}},
                    {"name": "cuda", "parameters": {"use_ep_level_unified_stream": "1"}},
                ]
            }
        }
    )

    @pytest.mark.parametrize("kind", ["CPU", "AUTO", "MODEL"])
    def test_cpu(self, kind: str) -> None:
        assert choose_providers(config(), kind, 0, [CPU]) == [(CPU, {})]

    @pytest.mark.parametrize("kind", ["GPU", "AUTO"])
    def test_gpu(self, kind: str) -> None:
        providers = choose_providers(config(), kind, 1, [CUDA, CPU])
        assert providers == [(CUDA, {"device_id": "1"}), (CPU, {})]

    def test_kind_cpu_stays_on_the_cpu(self) -> None:
        assert choose_providers(self.TRT, "CPU", 0, [TENSORRT, CUDA, CPU]) == [(CPU, {})]

    def test_gpu_without_cuda_is_refused(self) -> None:
        with pytest.raises(ModelRefused, match="KIND_GPU, but this onnxruntime build has no CUDA"):
            choose_providers(config(), "GPU", 0, [CPU])

    def test_accelerators(self) -> None:
        tensorrt, cuda, cpu = choose_providers(self.TRT, "GPU", 2, [TENSORRT, CUDA, CPU])
        assert tensorrt == (TENSORRT, {"device_id": "2", "trt_fp16_enable": "True"})
        assert cuda == (CUDA, {"device_id": "2", "use_ep_level_unified_stream": "1"})
        assert cpu == (CPU, {})

    def test_an_accelerator_that_is_not_built_in_is_refused(self) -> None:
        with pytest.raises(ModelRefused, match=f"ask for {TENSORRT}, which this onnxruntime build"):
            choose_providers(self.TRT, "GPU", 0, [CUDA, CPU])

    @pytest.mark.parametrize(("device", "kind"), [("gpu", "GPU"), ("cpu", "CPU")])
    def test_an_unknown_accelerator_is_refused(self, device: str, kind: str) -> None:
        accelerators = {f"{device}_execution_accelerator": [{"name": "warp"}]}
        invalid = config(optimization={"execution_accelerators": accelerators})
        with pytest.raises(ModelRefused, match="unknown execution accelerator 'warp'"):
            choose_providers(invalid, kind, 0, [CUDA, CPU])

    def test_openvino_on_the_cpu(self) -> None:
        accelerators = {"cpu_execution_accelerator": [{"name": "openvino"}]}
        full = config(optimization={"execution_accelerators": accelerators})
        providers = choose_providers(full, "CPU", 0, ["OpenVINOExecutionProvider", CPU])
        assert providers == [("OpenVINOExecutionProvider", {"device_type": "CPU"}), (CPU, {})]

    def test_deprecated_cuda_parameters(self) -> None:
        full = parameters(cudnn_conv_algo_search="1", gpu_mem_limit="5", arena_extend_strategy="0")
        cuda, _ = choose_providers(full, "GPU", 0, [CUDA, CPU])
        assert cuda[1] == {
            "device_id": "0",
            "cudnn_conv_algo_search": "HEURISTIC",
            "gpu_mem_limit": "5",
            "arena_extend_strategy": "kNextPowerOfTwo",
        }
        with pytest.raises(ModelRefused, match="'cudnn_conv_algo_search' cannot be '7'"):
            choose_providers(parameters(cudnn_conv_algo_search="7"), "GPU", 0, [CUDA, CPU])

    def test_cuda_graphs(self) -> None:
        graphs = {"cuda": {"graphs": True}}
        cuda, _ = choose_providers(config(optimization=graphs), "GPU", 0, [CUDA, CPU])
        assert cuda[1] == {"device_id": "0", "enable_cuda_graph": "1"}
        accelerator = {"name": "cuda", "parameters": {"enable_cuda_graph": "1"}}
        accelerators = {"execution_accelerators": {"gpu_execution_accelerator": [accelerator]}}
        with pytest.raises(ModelRefused, match=r"write optimization \{ cuda \{ graphs: true"):
            choose_providers(config(optimization=accelerators), "GPU", 0, [CUDA, CPU])

    def test_tensorrt_parameters(self) -> None:
        values = {
            "precision_mode": "INT8",
            "max_workspace_size_bytes": "1073741824",
            "int8_use_native_calibration_table": "0",
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": "cache",
            "trt_builder_optimization_level": "1",
        }
        assert tensorrt_options(config(), values) == {
            "trt_int8_enable": "True",
            "trt_max_workspace_size": "1073741824",
            "trt_int8_use_native_calibration_table": "False",
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": "cache",
            "trt_builder_optimization_level": "1",
        }
        for invalid in ({"precision_mode": "FP4"}, {"speed": "11"}):
            with pytest.raises(ModelRefused, match="the tensorrt accelerator does not know"):
                tensorrt_options(config(), invalid)


class TestCuda:
    def test_a_failed_run_is_an_error_and_not_run_again_on_the_cpu(self, tmp_path: Path) -> None:
        """The Python package's own default is to go on with a session on the CPU."""
        graph = helper.make_graph(
            [helper.make_node("Relu", ["x"], ["y"])],
            "graph",
            [value("x", FLOAT, "N", 3)],
            [value("y", FLOAT, "N", 3)],
        )
        opset = [helper.make_opsetid("", 18)]
        onnx.save(
            helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "model.onnx"
        )
        tensors = {name: [entry(name, "TYPE_FP32", 3)] for name in "xy"}
        full = config(max_batch_size=2, input=tensors["x"], output=tensors["y"])
        session = open_session(full, tmp_path / "model.onnx", [(CPU, {})], pytest.fail)
        assert operators(session) == {CPU: 1}

        def fail(*_: Any) -> None:
            raise EPFail("CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc(&p, size)")

        relu = Runner(full, Graph.read(session), session)
        request = job(relu, x=np.ones((1, 3), "f"))
        session._sess = SimpleNamespace(run=fail, is_webgpu_graph_capture_enabled=lambda: False)
        (error,) = relu.run([request])
        assert isinstance(error, RunFailed)
        assert "CUDA failure 2: out of memory" in repr(error.__cause__)

    def test_a_session_without_its_provider_is_refused_in_the_loaders_words(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ort_session.why_not_started", lambda: "libcudnn.so.9: cannot open")
        monkeypatch.setattr("ort_session._load", lambda *_: identity(FLOAT, "N", 3))
        with pytest.raises(ModelRefused, match=rf"{CUDA} did not start .*: libcudnn.so.9: cannot"):
            open_session(config(), tmp_path, [(CUDA, {}), (CPU, {})], pytest.fail)

    def test_without_a_driver_the_loader_says_so(self) -> None:
        def load(name: str) -> Any:
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")

        assert why_not_started(load).startswith("libcuda.so.1: cannot open shared object file")

    def test_a_drivers_own_error_is_reported(self, tmp_path: Path) -> None:
        """A stand-in for the driver of a machine without a GPU, through the real loader."""
        source = tmp_path / "cuda.c"
        source.write_text(
            "int cuInit(unsigned flags) { return 100; }\n"
            "int cuGetErrorString(int code, const char **text)\n"
            '{ *text = "no CUDA-capable device is detected"; return code != 100; }\n'
        )
        library = tmp_path / "libcuda.so.1"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
        reason = why_not_started(lambda _: ctypes.CDLL(str(library)))
        assert reason == "CUDA error 100: no CUDA-capable device is detected"


class TestRunner:
    def test_a_batch_is_one_run_and_each_request_gets_its_rows(self) -> None:
        add, session = runner(addition())
        jobs = [
            job(add, a=np.full((rows, 2), rows, "f"), b=np.ones((rows, 2), "f"))
            for rows in (1, 3, 2)
        ]
        results = add.run(jobs)
        assert session.runs == 1
        for rows, outputs in zip((1, 3, 2), results, strict=True):
            assert isinstance(outputs, dict)
            np.testing.assert_array_equal(outputs["total"], np.full((rows, 2), rows + 1))
            np.testing.assert_array_equal(outputs["difference"], np.full((rows, 2), rows - 1))

    def test_each_request_gets_only_the_outputs_it_requested(self) -> None:
        add, session = runner(addition())
        one = np.ones((1, 2), "f")
        requests = [("total",), ("difference",), ()]
        results = add.run([job(add, *names, a=one, b=one) for names in requests])
        assert [set(outputs) for outputs in results] == [  # type: ignore[arg-type]
            {"total"},
            {"difference"},
            {"total", "difference"},
        ]
        assert session.runs == 1

    def test_different_shapes_run_separately_and_results_keep_their_order(self) -> None:
        echo, session = runner(identity(FLOAT, "N", "L"))
        rows = [np.full((1, length), length, "f") for length in (2, 3, 2, 5)]
        results = echo.run([job(echo, x=row) for row in rows])
        assert session.runs == 3
        for row, outputs in zip(rows, results, strict=True):
            np.testing.assert_array_equal(outputs["y"], row)  # type: ignore[index]

    @staticmethod
    def _searching(session: Any) -> Callable[[], Counting]:
        """Sessions that take 30 ms longer when the shape differs from the previous one, like
        CUDA's."""

        class Searching(Counting):
            def __init__(self) -> None:
                super().__init__(session)

            def run(self, names: Any, feeds: dict[str, Any], options: Any) -> Any:
                outputs = super().run(names, feeds, options)
                time.sleep(0.03 if self.rows[-2:-1] != self.rows[-1:] else 0)
                return outputs

        return Searching

    def _with_fixed_sizes(self, max_batch_size: int) -> tuple[Runner, list[Any]]:
        session = addition()
        full = config(max_batch_size=max_batch_size, input=[_pair("a"), _pair("b")])
        graph, searching = Graph.read(session), self._searching(session)
        complete_config(full, graph)
        sessions = [searching()]
        add = Runner(full, graph, sessions[0])

        def new_session() -> Any:
            sessions.append(searching())
            return sessions[-1]

        add.fix_sizes(full, new_session)
        return add, sessions

    def test_a_batch_size_that_is_costly_to_change_to_has_its_own_session(self) -> None:
        add, sessions = self._with_fixed_sizes(max_batch_size=20)
        assert [session.rows[-1] for session in sessions] == [1, 4, 16, 20]
        before = [session.runs for session in sessions]
        one = np.ones((1, 2), "f")
        for rows in (1, 3, 4, 5, 17):
            jobs = [job(add, "total", a=one * index, b=one) for index in range(rows)]
            totals = [answer["total"].tolist() for answer in add.run(jobs)]  # type: ignore[index]
            assert totals == [[[index + 1.0] * 2] for index in range(rows)]
        assert [
            session.runs - runs_before
            for session, runs_before in zip(sessions, before, strict=True)
        ] == [1, 2, 1, 1]
        assert [set(session.rows[1:]) for session in sessions[1:]] == [{4}, {16}, {20}]
        (answer,) = add.run([job(add, a=np.repeat(one, 3, axis=0), b=np.ones((3, 2), "f"))])
        assert answer["total"].shape == answer["difference"].shape == (3, 2)  # type: ignore[index]

    def test_a_batch_size_that_costs_nothing_to_change_to_is_not_padded(self) -> None:
        add, session = runner(addition(), max_batch_size=64)
        full = config(max_batch_size=64, input=[_pair("a"), _pair("b")])
        add.fix_sizes(full, lambda: pytest.fail("a second session"))
        add.run([job(add, a=np.ones((3, 2), "f"), b=np.ones((3, 2), "f"))])
        assert session.rows[-1] == 3

    def test_sizes_of_a_graph_with_open_dims_are_not_fixed(self) -> None:
        echo, session = runner(identity(FLOAT, "N", "L"), max_batch_size=8)
        full = config(max_batch_size=8, input=[entry("x", "TYPE_FP32", -1)])
        echo.fix_sizes(full, lambda: pytest.fail("a second session"))
        assert session.runs == 0

    def test_a_graph_that_cannot_take_zeros_is_reported_and_not_padded(self) -> None:
        x, shape = value("x", FLOAT, "N", 4), value("shape", TensorProto.INT64, "N", 1)
        reshape = helper.make_node("Reshape", ["x", "flat"], ["y"])
        flat = helper.make_node("Squeeze", ["shape", "last"], ["flat"])
        last = numpy_helper.from_array(np.array([1], np.int64), "last")
        reshaping, session = runner(
            session_of([flat, reshape], [x, shape], [value("y", FLOAT, "N")], last),
            max_batch_size=2,
        )
        inputs = [entry("x", "TYPE_FP32", 4), entry("shape", "TYPE_INT64", 1)]
        with pytest.raises(BatchError):
            reshaping.fix_sizes(
                config(max_batch_size=2, input=inputs), lambda: pytest.fail("a second session")
            )
        reshaping.run([job(reshaping, x=np.ones((3, 4), "f"), shape=[[3], [2], [2]])])
        assert session.rows[-1] == 3

    def test_without_a_batch_axis_each_request_runs_alone(self) -> None:
        echo, session = runner(identity(FLOAT, 1, 3))
        echo.run([job(echo, x=np.ones((1, 3), "f"))] * 3)
        assert session.runs == 3

    def test_nothing_to_run(self) -> None:
        echo, session = runner(identity(FLOAT, "N", 1))
        assert echo.run([]) == []
        assert session.runs == 0

    def test_only_the_request_at_fault_fails(self) -> None:
        find, session = runner(lookup())
        results = find.run([job(find, index=[[index]]) for index in (0, 7, 2)])
        assert session.runs == 4  # together, then one by one
        assert float(results[0]["y"][0, 0]) == 10  # type: ignore[index]
        assert float(results[2]["y"][0, 0]) == 30  # type: ignore[index]
        error = results[1]
        assert isinstance(error, InvalidInput)
        assert str(error).startswith(f"{MARKER} model 'm' tensor 'index': Gather: indices element")
        assert str(error).endswith("; send values that the model takes")

    def test_inputs_with_different_lengths_of_a_shared_axis(self) -> None:
        add, _ = runner(addition())
        (error,) = add.run([job(add, a=np.ones((1, 2), "f"), b=np.ones((1, 3), "f"))])
        assert isinstance(error, InvalidInput)
        assert "tensor 'b': axis 'L' has length 3 here and 2 in 'a'; " in str(error)

    def test_different_lengths_that_broadcast_are_valid(self) -> None:
        add, _ = runner(addition())
        (outputs,) = add.run([job(add, a=np.ones((1, 1), "f"), b=np.ones((1, 3), "f"))])
        np.testing.assert_array_equal(outputs["total"], np.full((1, 3), 2))  # type: ignore[index]

    @pytest.mark.parametrize("shape", [(3,), (1, 4), (1, 3, 1)])
    def test_a_shape_that_the_graph_does_not_take(self, shape: tuple[int, ...]) -> None:
        echo, _ = runner(identity(FLOAT, "N", 3))
        with pytest.raises(InvalidInput, match=r"model 'm' tensor 'x': the shape is .* \[-1, 3\]"):
            job(echo, x=np.zeros(shape, "f"))

    def test_a_failure_of_the_runtime_names_no_path(self) -> None:
        def fail(*_: Any) -> None:
            status = "/onnxruntime_src/core/add.h:563 Init() bad axis in '/encoder/layer/Add'"
            raise RuntimeError(
                f"Non-zero status code returned while running Add node. Status Message: {status}"
            )

        session = identity(FLOAT, "N", 3)
        echo, counting = runner(session)
        counting.session = SimpleNamespace(run=fail)
        (error,) = echo.run([job(echo, x=np.ones((1, 3), "f"))])
        assert isinstance(error, RunFailed)
        assert str(error) == "model 'm': ONNX Runtime failed: Add: Init() bad axis in ''"

    def test_outputs_that_cannot_be_split(self) -> None:
        flatten, _ = runner(
            session_of(
                [helper.make_node("Reshape", ["x", "shape"], ["y"])],
                [value("x", FLOAT, "N", 2)],
                [value("y", FLOAT, "M", 1)],
                numpy_helper.from_array(np.array([-1, 1], np.int64), "shape"),
            )
        )
        results = flatten.run([job(flatten, x=np.ones((1, 2), "f"))] * 2)
        assert [type(result) for result in results] == [RunFailed, RunFailed]
        assert "tensor 'y': the graph returned shape [2, 1] for 1 rows" in str(results[0])

    @pytest.mark.parametrize(
        ("axes", "shape"), [((), (1,)), (("N",), (3, 1))], ids=["scalar", "one value per row"]
    )
    def test_axes_of_one_that_only_the_config_has(
        self, axes: tuple[str, ...], shape: tuple[int, ...]
    ) -> None:
        echo, _ = runner(identity(FLOAT, *axes))
        rows = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        request = job(echo, x=rows)
        assert request.feeds["x"].ndim == len(axes)
        np.testing.assert_array_equal(echo.run([request])[0]["y"], rows)  # type: ignore[index]

    def test_no_rows(self) -> None:
        echo, _ = runner(identity(FLOAT, "N", 3))
        (outputs,) = echo.run([job(echo, x=np.zeros((0, 3), "f"))])
        assert outputs["y"].shape == (0, 3)  # type: ignore[index]

    def test_text(self) -> None:
        echo, session = runner(identity(TensorProto.STRING, "N", 1))
        texts = [np.array([["grüße".encode()]], object), np.array([[b"a\0b"]], object)]
        results = echo.run([job(echo, x=text) for text in texts])
        assert session.runs == 1
        assert [outputs["y"].tolist() for outputs in results] == [[["grüße"]], [["a\0b"]]]  # type: ignore[index]
        with pytest.raises(InvalidInput, match="tensor 'x': a string is not UTF-8"):
            job(echo, x=np.array([[b"\xff"]], object))

    def test_a_default_is_used_unless_the_input_is_sent(self) -> None:
        factor = numpy_helper.from_array(np.array([2], np.float32), "factor")
        session = session_of(
            [helper.make_node("Mul", ["x", "factor"], ["y"])],
            [value("x", FLOAT, "L"), value("factor", FLOAT, 1)],
            [value("y", FLOAT, "L")],
            factor,
        )
        optional = entry("factor", "TYPE_FP32", 1, optional=True)
        scale, _ = runner(session, input=[entry("x", "TYPE_FP32", -1), optional])
        plain = job(scale, x=np.ones(2, "f"))
        scaled = job(scale, x=np.ones(2, "f"), factor=np.array([5], "f"))
        first, second = scale.run([plain, scaled])
        assert first["y"].tolist() == [2, 2]  # type: ignore[index]
        assert second["y"].tolist() == [5, 5]  # type: ignore[index]

    def test_the_operators_mistake_is_not_blamed_on_the_client(self) -> None:
        name = "memory.enable_memory_arena_shrinkage"
        echo, _ = runner(identity(FLOAT, "N", 3), parameters={name: {"string_value": "gpu:7"}})
        (error,) = echo.run([job(echo, x=np.ones((1, 3), "f"))])
        assert isinstance(error, BatchError)
        assert MARKER not in str(error)


class TestSequences:
    """Rows without their padding: ids and mask [n, length] -> their sum [n], and ids + mask."""

    WRITTEN: ClassVar[dict[str, Any]] = {
        "max_batch_size": 8,
        "parameters": parameters(padding_mask="mask", padding_value="7")["parameters"],
    }

    def model(self) -> tuple[Runner, list[tuple[int, ...]]]:
        """The model, and the shape of each of its runs. An id above 9 fails."""
        table = numpy_helper.from_array(np.arange(10, dtype=np.int64), "table")
        axis = numpy_helper.from_array(np.array([1], np.int64), "axis")
        session = session_of(
            [
                helper.make_node("Gather", ["table", "ids"], ["looked_up"]),
                helper.make_node("Mul", ["looked_up", "mask"], ["of_text"]),
                helper.make_node("ReduceSum", ["of_text", "axis"], ["sum"]),
                helper.make_node("Add", ["ids", "mask"], ["both"]),
            ],
            [value(name, TensorProto.INT64, "N", "L") for name in ("ids", "mask")],
            [
                value("sum", TensorProto.INT64, "N", 1),
                value("both", TensorProto.INT64, "N", "L"),
            ],
            table,
            axis,
        )
        runs: list[tuple[int, ...]] = []

        class Recording(Counting):
            def run(self, names: Any, feeds: Any, options: Any) -> Any:
                runs.append(feeds["ids"].shape)
                return super().run(names, feeds, options)

        graph, full = Graph.read(session), config(**self.WRITTEN)
        complete_config(full, graph)
        return Runner(full, graph, Recording(session)), runs

    @staticmethod
    def texts(model: Runner, width: int, *lengths: int) -> Job:
        """Rows of so many ones, padded with 7."""
        mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)
        return job(model, ids=np.where(mask == 1, 1, 7), mask=mask)

    def test_padding_is_not_computed_and_rows_of_similar_length_share_a_run(self) -> None:
        model, runs = self.model()
        requests = [(16, 3), (64, 40, 5), (16, 4), (64, 37)]
        results = model.run([self.texts(model, *request) for request in requests])
        assert runs == [(3, 5), (2, 40)]
        for (width, *lengths), outputs in zip(requests, results, strict=True):
            assert isinstance(outputs, dict)
            np.testing.assert_array_equal(outputs["sum"], np.array(lengths)[:, None])
            # As wide as the request; what was not computed is 0.
            assert outputs["both"].shape == (len(lengths), width)
            for row, length in zip(outputs["both"], lengths, strict=True):
                assert (row[:length] == 2).all()
                assert not row[40:].any()

    def test_masks_that_begin_late_or_have_holes_lose_only_what_follows_them(self) -> None:
        model, runs = self.model()
        mask = np.array([[0, 0, 1, 0, 1, 0, 0, 0], [0] * 8])
        (outputs,) = model.run([job(model, ids=np.full((2, 8), 2), mask=mask)])
        np.testing.assert_array_equal(outputs["sum"], [[4], [0]])  # type: ignore[index]
        assert runs == [(2, 5)]

    @pytest.mark.parametrize("length", [0, 1, 5, 16])
    def test_a_row_alone_is_answered_as_beside_another(self, length: int) -> None:
        model, runs = self.model()
        text = self.texts(model, 16, length)
        (alone,) = model.run([text])
        beside, _ = model.run([text, self.texts(model, 16, length)])
        assert runs == [(1, max(length, 1)), (2, max(length, 1))]
        assert isinstance(alone, dict)
        for name, array in alone.items():
            np.testing.assert_array_equal(array, beside[name])  # type: ignore[index]
        assert alone["both"].shape == (1, 16)

    def test_one_bad_request_fails_alone(self) -> None:
        model, _ = self.model()
        bad = job(model, ids=np.full((1, 4), 99), mask=np.ones((1, 4), np.int64))
        unequal = job(model, ids=np.ones((1, 4), np.int64), mask=np.ones((1, 5), np.int64))
        good = self.texts(model, 4, 4)
        for wrong in (bad, unequal):
            first, second = model.run([wrong, good])
            assert isinstance(first, BatchError)
            np.testing.assert_array_equal(second["sum"], [[4]])  # type: ignore[index]

    @pytest.mark.parametrize(
        ("fixed", "for_position", "runs_of_texts"),
        [
            (20e-3, 1e-3, [(3, 12)]),  # 3 x 12 positions in one run cost less than 20 more
            (2e-3, 1e-3, [(2, 3), (1, 12)]),
            (2e-3, 0, [(3, 12)]),  # all as fast: what costs is the run
        ],
    )
    def test_rows_share_a_run_where_that_is_cheaper_on_this_machine(
        self,
        fixed: float,
        for_position: float,
        runs_of_texts: list[tuple[int, int]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        model, runs = self.model()

        def clock() -> float:
            positions = sum(rows * length for rows, length in runs)
            return fixed * len(runs) + for_position * positions

        monkeypatch.setattr("ort_batch.time.thread_time", clock)
        model.measure_run_cost()
        runs.clear()
        model.run([self.texts(model, 16, length) for length in (3, 12, 3)])
        assert runs == runs_of_texts

    def test_a_graph_that_cannot_take_the_measured_runs_is_served_all_the_same(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise RuntimeError("it takes no position beyond the third")

        model, runs = self.model()
        with monkeypatch.context() as patched:
            patched.setattr(Counting, "run", refuse)
            model.measure_run_cost()
        runs.clear()
        model.run([self.texts(model, 16, length) for length in (3, 12, 3)])
        assert runs == [(2, 3), (1, 12)]

    @pytest.mark.parametrize(
        "lengths", [[9], [5, 5, 5], [3, 30, 4, 31, 8, 12], [1, 6, 12, 18], [64, 2, 64, 2, 9, 10]]
    )
    def test_no_other_split_into_runs_costs_less(self, lengths: list[int]) -> None:
        def cost(runs: Iterable[Sequence[int]]) -> float:
            return sum(RUN_COST + len(run) * max(lengths[row] for row in run) for run in runs)

        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        splits = (
            np.split(order, [cut for cut in range(1, len(order)) if bits >> cut & 1])
            for bits in range(0, 2 ** len(order), 2)
        )
        runs = similar(lengths)
        assert sorted(row for run in runs for row in run) == list(range(len(lengths)))
        assert cost(runs) == min(map(cost, splits))

    @pytest.mark.parametrize(
        "fields",
        [
            {"input": [entry("ids", "TYPE_INT64", -1)]},
            {"input": [entry("mask", "TYPE_INT64", 8)]},
            {"input": [entry("mask", "TYPE_INT64", -1)], "max_batch_size": 0},
        ],
    )
    def test_a_mask_that_is_not_a_sequence_is_refused(self, fields: dict[str, Any]) -> None:
        with pytest.raises(ModelRefused, match="padding_mask"):
            Sequences.of(config(**self.WRITTEN | fields))


class TestCudaGraphs:
    """The backend's own part, on the CPU: there, a run through bound tensors replays nothing."""

    GRAPHS: ClassVar[dict[str, Any]] = {"optimization": {"cuda": {"graphs": True}}}

    def sum_of(self, *axes: int | str) -> Any:
        """A session that gives y = x + x."""
        return session_of(
            [helper.make_node("Add", ["x", "x"], ["y"])],
            [value("x", FLOAT, *axes)],
            [value("y", FLOAT, *axes)],
        )

    def test_each_number_of_rows_and_length_has_a_graph_and_others_run_without(self) -> None:
        lengths = parameters(cuda_graph_lengths="2,4")["parameters"]
        full = config(
            max_batch_size=6,
            input=[entry("x", "TYPE_FP32", -1)],
            output=[entry("y", "TYPE_FP32", -1)],
            parameters=lengths,
            **self.GRAPHS,
        )
        session = self.sum_of("N", "L")
        summing = Runner(full, Graph.read(session), session)
        summing.capture_graphs(full, ("cpu", 0))
        assert [shapes for ((_, shapes),) in summing._graphs] == [
            (rows, length) for rows in (1, 2, 4, 6) for length in (2, 4)
        ]
        ordinary = Counting(session)
        summing._session = ordinary
        for rows in (1, 3, 4, 5):
            sent = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
            (outputs,) = summing.run([job(summing, x=sent)])
            np.testing.assert_array_equal(outputs["y"], sent * 2)  # type: ignore[index]
        assert ordinary.runs == 0
        (outputs,) = summing.run([job(summing, x=np.ones((3, 5), "f"))])
        assert outputs["y"].shape == (3, 5)  # type: ignore[index]
        assert ordinary.runs == 1

    def test_a_graph_that_gives_other_values_is_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As where a value was computed on the CPU while it was captured."""
        full = config(
            max_batch_size=2,
            input=[entry("x", "TYPE_FP32", 3)],
            output=[entry("y", "TYPE_FP32", 3)],
            **self.GRAPHS,
        )
        session = self.sum_of("N", 3)
        summing = Runner(full, Graph.read(session), session)
        monkeypatch.setattr(
            "ort_batch.CudaGraph.run", lambda self, names, feeds: [feeds["x"] * 2 + 1]
        )
        with pytest.raises(ModelRefused, match="gives other values than a run without"):
            summing.capture_graphs(full, ("cpu", 0))

    @pytest.mark.parametrize(
        ("onnx_type", "data_type", "lengths", "problem"),
        [
            ("tensor(string)", "TYPE_STRING", "4", "an input holds strings"),
            ("tensor(float)", "TYPE_FP32", "", "cuda_graph_lengths does not say which"),
            ("tensor(float)", "TYPE_FP32", "short", "cuda_graph_lengths cannot be 'short'"),
        ],
    )
    def test_what_cannot_be_captured(
        self, onnx_type: str, data_type: str, lengths: str, problem: str
    ) -> None:
        written = parameters(cuda_graph_lengths=lengths)["parameters"]
        full = config(input=[entry("x", data_type, -1)], parameters=written)
        inputs = [GraphTensor("x", onnx_type, ("N",))]
        with pytest.raises(ModelRefused, match=problem):
            list(graph_shapes(full, inputs, (1,)))


def _pair(name: str) -> dict[str, Any]:
    return entry(name, "TYPE_FP32", 2)


@pytest.mark.parametrize(
    ("kind", "batching", "merged"),
    [("KIND_GPU", True, True), ("KIND_CPU", True, False), ("KIND_GPU", False, False)],
)
@pytest.mark.parametrize("mask", ["", "x"])
def test_a_batching_model_on_a_gpu_or_of_sequences_merges_different_shapes(
    kind: str, batching: bool, merged: bool, mask: str
) -> None:
    full = config(input=[entry("x", "TYPE_FP32", -1)], instance_group=[{"kind": kind}])
    full["parameters"] = parameters(padding_mask=mask)["parameters"]
    merged = merged or bool(batching and mask)
    if batching:
        full["dynamic_batching"] = {}
    merge_unlike_shapes(full)
    assert full["input"][0].get("allow_ragged_batch", False) is merged


class StandIn:
    """The few classes of triton_python_backend_utils that model.py uses."""

    TritonModelException = type("TritonModelException", (Exception,), {})

    class TritonError:
        INTERNAL, INVALID_ARG, CANCELLED = range(3)

        def __init__(self, message: str, code: int) -> None:
            self.message, self.code = message, code

    class Tensor:
        def __init__(self, name: str, array: Any) -> None:
            self.name, self.as_numpy = lambda: name, lambda: array

    class InferenceResponse:
        def __init__(self, output_tensors: list[Any], error: Any = None) -> None:
            self.tensors = {tensor.name(): tensor.as_numpy() for tensor in output_tensors}
            self.error = error

    class Logger:
        log_warn = staticmethod(pytest.fail)
        log_error = log_info = staticmethod(print)

    class MetricFamily:
        GAUGE = "gauge"

        def __init__(self, name: str, description: str, kind: str) -> None:
            self.name = name
            self.values: dict[tuple[str, ...], int] = {}

        def Metric(self, labels: dict[str, str]) -> Any:  # noqa: N802 - Triton's name
            return SimpleNamespace(set=partial(self.values.__setitem__, tuple(labels.values())))


class Request:
    def __init__(self, cancelled: bool = False, **arrays: Any) -> None:
        self.is_cancelled = lambda: cancelled
        self.requested_output_names = lambda: {"y"}
        self.inputs = lambda: [StandIn.Tensor(name, array) for name, array in arrays.items()]


@pytest.fixture(name="backend")
def _backend(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # By file: "model" is also the name of every other backend's module.
    spec = importlib.util.spec_from_file_location("onnxruntime_backend_model", FOLDER / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.pb_utils = StandIn  # type: ignore[attr-defined]
    monkeypatch.setattr(ort_requests, "pb_utils", StandIn)
    return module


class TestModel:
    def _save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        graph = helper.make_graph(
            [helper.make_node("Gather", ["table", "index"], ["y"])],
            "graph",
            [value("index", TensorProto.INT64, "N", 1)],
            [value("y", FLOAT, "N", 1)],
            [numpy_helper.from_array(np.array([10, 20, 30], np.float32), "table")],
        )
        opset = [helper.make_opsetid("", 18)]
        onnx.save(
            helper.make_model(graph, opset_imports=opset, ir_version=9), folder / "model.onnx"
        )

    def _load(
        self, backend: ModuleType, full: dict[str, Any], repository: Path, kind: str = "CPU"
    ) -> Any:
        model = backend.TritonPythonModel()
        model.initialize(
            {
                "model_config": json.dumps(full),
                "model_name": "m",
                "model_instance_kind": kind,
                "model_instance_device_id": "0",
                "model_repository": str(repository / "m"),
                "model_version": "1",
            }
        )
        return model

    def test_without_cuda_graphs_where_none_can_be_captured(
        self,
        backend: ModuleType,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """As on a GPU that lacks one of the model's operators: here all of CUDA is missing."""
        self._save(tmp_path / "m" / "1")
        monkeypatch.setattr(backend, "choose_providers", lambda *_: [(CPU, {})])
        warnings: list[str] = []
        monkeypatch.setattr(backend.pb_utils.Logger, "log_warn", warnings.append)
        full = config(
            max_batch_size=4,
            input=[entry("index", "TYPE_INT64", 1)],
            output=[entry("y", "TYPE_FP32", 1)],
            optimization={"cuda": {"graphs": True}},
        )
        model = self._load(backend, full, tmp_path, kind="GPU")
        assert "model 'm' is served without CUDA graphs, because" in warnings[0]
        (response,) = model.execute([Request(index=np.array([[2]]))])
        assert response.error is None
        assert response.tensors["y"].tolist() == [[30]]

    def test_from_an_empty_config_to_answers(
        self,
        backend: ModuleType,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self._save(tmp_path / "m" / "1")
        monkeypatch.setenv("TIDEGATE_MODEL_REPOSITORY", str(tmp_path))
        full = config()
        triton_config = SimpleNamespace(as_dict=lambda: full)
        assert backend.TritonPythonModel.auto_complete_config(triton_config) is triton_config
        assert full["max_batch_size"] == 4

        model = self._load(backend, full, tmp_path)
        assert "model 'm' version 1: 1 operators on CPUExecutionProvider" in capsys.readouterr().out
        family, _ = model._metric
        assert family.values == {("m", "1", CPU): 1}
        bad, cancelled = (
            Request(index=np.array([[9]])),
            Request(index=np.array([[0]]), cancelled=True),
        )
        good, misshapen = Request(index=np.array([[1]])), Request(index=np.array([1, 2]))
        responses = model.execute([bad, cancelled, good, misshapen])
        codes = [response.error and response.error.code for response in responses]
        error = StandIn.TritonError
        assert codes == [error.INVALID_ARG, error.CANCELLED, None, error.INVALID_ARG]
        assert responses[2].tensors["y"].tolist() == [[20]]
        # Once runs are known to be short, checking for cancellation would cost more than a run.
        model._runner.last_run_s = 1e-5  # another process may have had the core meanwhile
        (response,) = model.execute([cancelled])
        assert response.tensors["y"].tolist() == [[10]]
        model.finalize()

    def test_on_a_gpu_it_has_run_before_the_first_request(
        self, backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With CUDA's provider replaced by the CPU's."""
        self._save(tmp_path / "m" / "1")
        monkeypatch.setenv("TIDEGATE_MODEL_REPOSITORY", str(tmp_path))
        monkeypatch.setattr(backend, "choose_providers", lambda *_: [(CPU, {})])
        full = config(instance_group=[{"kind": "KIND_GPU"}])
        backend.TritonPythonModel.auto_complete_config(SimpleNamespace(as_dict=lambda: full))
        assert [tensor["allow_ragged_batch"] for tensor in full["input"]] == [True]
        model = self._load(backend, full, tmp_path, kind="GPU")
        assert math.isfinite(model._runner.last_run_s)  # infinite before the first
        responses = model.execute([Request(index=np.array([[row]])) for row in (2, 0, 1)])
        outputs = [response.tensors["y"].tolist() for response in responses]
        assert outputs == [[[30]], [[10]], [[20]]]

    def test_a_failed_run_is_internal_and_logged(
        self, backend: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._save(tmp_path / "m" / "1")
        full = config(
            max_batch_size=4,
            input=[entry("index", "TYPE_INT64", 1)],
            output=[entry("y", "TYPE_FP32", 1)],
        )
        model = self._load(backend, full, tmp_path)
        model._runner.run = lambda jobs: [RunFailed("model 'm': it broke")]
        (response,) = model.execute([Request(index=np.array([[0]]))])
        assert response.error.code == StandIn.TritonError.INTERNAL
        assert "it broke" in capsys.readouterr().out

    def test_an_open_config_needs_the_repository(
        self, backend: ModuleType, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("TIDEGATE_MODEL_REPOSITORY", raising=False)
        triton_config = SimpleNamespace(as_dict=config)
        with pytest.raises(StandIn.TritonModelException, match="set TIDEGATE_MODEL_REPOSITORY"):
            backend.TritonPythonModel.auto_complete_config(triton_config)

    def test_a_full_config_is_left_alone(self, backend: ModuleType) -> None:
        full = config(input=[entry("x", "TYPE_FP32", 1)], output=[entry("y", "TYPE_FP32", 1)])
        before = copy.deepcopy(full)
        backend.TritonPythonModel.auto_complete_config(SimpleNamespace(as_dict=lambda: full))
        assert full == before

    def test_a_refusal_reaches_triton(self, backend: ModuleType, tmp_path: Path) -> None:
        self._save(tmp_path / "m" / "1")
        full = config(input=[entry("index", "TYPE_INT32", -1, 1)])
        with pytest.raises(StandIn.TritonModelException, match=r"'index': .* TYPE_INT64"):
            self._load(backend, full, tmp_path)
