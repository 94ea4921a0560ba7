"""The Python-based backend "onnxruntime" under a real Triton: load, complete, batch, refuse."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from onnx import TensorProto, helper, numpy_helper
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from serving.errors import ModelLoadFailed, StubCrashed
from serving.repository.model_repository import ModelRepository
from serving.triton.backend_directory import OURS
from serving.triton.launch import LaunchOptions, TritonServer
from serving.triton.ports import Ports, free_ports
from tests.running import wait_until

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
MARKER = "[tidegate:invalid_input]"

# Config name -> (ONNX element type, a sample row).
ELEMENT_TYPES: dict[str, tuple[int, np.ndarray[Any, Any]]] = {
    "BOOL": (TensorProto.BOOL, np.array([True, False])),
    "INT8": (TensorProto.INT8, np.array([-128, 127], np.int8)),
    "INT16": (TensorProto.INT16, np.array([-32768, 7], np.int16)),
    "INT32": (TensorProto.INT32, np.array([-5, 2**31 - 1], np.int32)),
    "INT64": (INT64, np.array([-5, 2**63 - 1], np.int64)),
    "UINT8": (TensorProto.UINT8, np.array([0, 255], np.uint8)),
    "UINT16": (TensorProto.UINT16, np.array([0, 65535], np.uint16)),
    "UINT32": (TensorProto.UINT32, np.array([0, 2**32 - 1], np.uint32)),
    "UINT64": (TensorProto.UINT64, np.array([0, 2**64 - 1], np.uint64)),
    "FP16": (TensorProto.FLOAT16, np.array([0.5, -2.0], np.float16)),
    "FP32": (FLOAT, np.array([0.1, np.inf], np.float32)),
    "FP64": (TensorProto.DOUBLE, np.array([0.1, -1e300], np.float64)),
    "STRING": (STRING, np.array(["grüße".encode(), b"a\0b"], np.object_)),
}


def value(name: str, element_type: int, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element_type, list(shape))


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    initialisers: tuple[onnx.TensorProto, ...] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(initialisers))
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9)


def identity(element_type: int = FLOAT, *shape: int | str) -> onnx.ModelProto:
    return model_of(
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", element_type, *shape)],
        [value("y", element_type, *shape)],
    )


def all_types() -> onnx.ModelProto:
    """One graph with an input and an output of every type, so that one load tests them all."""
    kinds = {name: element_type for name, (element_type, _) in ELEMENT_TYPES.items()}
    return model_of(
        [helper.make_node("Identity", [f"x_{name}"], [f"y_{name}"]) for name in kinds],
        [value(f"x_{name}", dtype, "N", 2) for name, dtype in kinds.items()],
        [value(f"y_{name}", dtype, "N", 2) for name, dtype in kinds.items()],
    )


def two_inputs() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Add", ["a", "b"], ["total"]),
        helper.make_node("Sub", ["a", "b"], ["difference"]),
    ]
    names = ("a", "b"), ("total", "difference")
    inputs, outputs = ([value(name, FLOAT, "N", "L") for name in side] for side in names)
    return model_of(nodes, inputs, outputs)


def lookup() -> onnx.ModelProto:
    """A lookup that fails on an index of 3 or more."""
    return model_of(
        [helper.make_node("Gather", ["table", "index"], ["y"])],
        [value("index", INT64, "N", 1)],
        [value("y", FLOAT, "N", 1)],
        (numpy_helper.from_array(np.array([10, 20, 30], np.float32), "table"),),
    )


def heavy(steps_count: int = 8) -> onnx.ModelProto:
    """Enough work that requests queue up."""
    weights = numpy_helper.from_array(np.full((1024, 1024), 1 / 1024, np.float32), "w")
    steps = [f"h{number}" for number in range(steps_count)]
    nodes = [
        helper.make_node("MatMul", [before, "w"], [after])
        for before, after in zip(["x", *steps], [*steps, "y"], strict=True)
    ]
    return model_of(
        nodes, [value("x", FLOAT, "N", 1024)], [value("y", FLOAT, "N", 1024)], (weights,)
    )


def with_default() -> onnx.ModelProto:
    return model_of(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        [value("x", FLOAT, "L"), value("factor", FLOAT, 1)],
        [value("y", FLOAT, "L")],
        (numpy_helper.from_array(np.array([2], np.float32), "factor"),),
    )


def sequence_output() -> onnx.ModelProto:
    sequence_type = helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, ["N"]))
    return model_of(
        [helper.make_node("SequenceConstruct", ["x"], ["probabilities"])],
        [value("x", FLOAT, "N")],
        [helper.make_value_info("probabilities", sequence_type)],
    )


def flattening() -> onnx.ModelProto:
    """Declares its first axis as the batch, but returns two rows for each."""
    return model_of(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [value("x", FLOAT, "N", 2)],
        [value("y", FLOAT, "M", 1)],
        (numpy_helper.from_array(np.array([-1, 1], np.int64), "shape"),),
    )


def tensor(side: str, name: str, dtype: str, dims: str, extra: str = "") -> str:
    return f'{side} [{{ name: "{name}" data_type: TYPE_{dtype} dims: [{dims}] {extra} }}]\n'


def parameter(name: str, text: str) -> str:
    return f'parameters {{ key: "{name}" value {{ string_value: "{text}" }} }}\n'


WAITING = "dynamic_batching { max_queue_delay_microseconds: 500000 preferred_batch_size: [4] }\n"
OPTIONS = "".join(
    parameter(*pair)
    for pair in (
        ("intra_op_thread_count", "1"),
        ("execution_mode", "0"),
        ("enable_mem_arena", "1"),
        ("memory.enable_memory_arena_shrinkage", "cpu:0"),
        ("session.intra_op.allow_spinning", "0"),
        ("intra_op_threads", "3"),
        ("tidegate.note", "not ours to read"),
    )
)
ROW = identity(FLOAT, "N", 3)

# name -> (graph, config) that must load.
GOOD: dict[str, tuple[onnx.ModelProto, str]] = {
    "all_types": (all_types(), ""),
    "open_shape": (identity(FLOAT, "N", "L"), "max_batch_size: 8\ndynamic_batching {}\n"),
    "fixed_batch": (identity(FLOAT, 8, 3), ""),
    "two_inputs": (two_inputs(), ""),
    "scalar": (identity(FLOAT), ""),
    "per_row": (identity(FLOAT, "N"), ""),
    "bare_reshape": (
        identity(FLOAT, "N"),
        "max_batch_size: 4\n"
        + tensor("input", "x", "FP32", "1", "reshape { shape: [] }")
        + tensor("output", "y", "FP32", "1", "reshape { shape: [] }"),
    ),
    "reshaped": (
        identity(FLOAT, "N", 2, 2),
        "max_batch_size: 4\n"
        + tensor("input", "x", "FP32", "4", "reshape { shape: [2, 2] }")
        + tensor("output", "y", "FP32", "4", "reshape { shape: [2, 2] }"),
    ),
    "no_batch_axis": (
        identity(FLOAT, "N", "L"),
        "max_batch_size: 0\n"
        + tensor("input", "x", "FP32", "-1, -1")
        + tensor("output", "y", "FP32", "-1, -1"),
    ),
    "with_default": (
        with_default(),
        "max_batch_size: 0\n"
        + tensor("input", "x", "FP32", "-1")
        + tensor("input", "factor", "FP32", "1", "optional: true")
        + tensor("output", "y", "FP32", "-1"),
    ),
    "one_output": (two_inputs(), "max_batch_size: 4\n" + tensor("output", "total", "FP32", "-1")),
    "lookup": (lookup(), "max_batch_size: 8\n" + WAITING),
    "mixed_shapes": (
        two_inputs(),
        "max_batch_size: 8\n"
        + WAITING
        + "".join(tensor("input", n, "FP32", "-1", "allow_ragged_batch: true") for n in "ab"),
    ),
    "heavy": (heavy(), "max_batch_size: 16\ndynamic_batching {}\n" + OPTIONS),
    # Explicit, so that auto-complete adds no dynamic batcher, which drops some requests itself.
    "slow": (
        heavy(100),
        "max_batch_size: 16\n"
        + tensor("input", "x", "FP32", "1024")
        + tensor("output", "y", "FP32", "1024")
        + "instance_group [{ kind: KIND_CPU count: 1 }]\n"
        + parameter("intra_op_thread_count", "1"),
    ),
    "flattening": (flattening(), "max_batch_size: 8\n"),
    "two_instances": (ROW, "instance_group [{ kind: KIND_CPU count: 2 }]\n"),
}

# name -> (graph, config, expected error) that must not load.
WRONG: dict[str, tuple[onnx.ModelProto, str, str]] = {
    "wrong_name": (
        ROW,
        tensor("input", "z", "FP32", "3") + tensor("output", "y", "FP32", "3"),
        "tensor 'x': the graph needs it",
    ),
    "wrong_output": (
        ROW,
        "max_batch_size: 4\n"
        + tensor("input", "x", "FP32", "3")
        + tensor("output", "z", "FP32", "3"),
        "tensor 'z': config.pbtxt lists it, but the graph has ['y']",
    ),
    "wrong_type": (
        ROW,
        "max_batch_size: 4\n" + tensor("input", "x", "INT64", "3"),
        "tensor 'x': config.pbtxt says TYPE_INT64, the graph says TYPE_FP32",
    ),
    "wrong_dims": (
        ROW,
        "max_batch_size: 4\n" + tensor("input", "x", "FP32", "5"),
        "tensor 'x': config.pbtxt says dims [5], the graph says [-1, 3]",
    ),
    "wrong_batch": (
        identity(FLOAT, 8, 3),
        "max_batch_size: 8\n",
        "tensor 'x': config.pbtxt says max_batch_size 8, the graph fixes the first axis",
    ),
    "wrong_parameter": (
        ROW,
        parameter("intra_op_thread_count", "many"),
        "parameter 'intra_op_thread_count' cannot be 'many'",
    ),
    "bfloat": (
        identity(TensorProto.BFLOAT16, "N", 2),
        "",
        "tensor 'x': the graph says tensor(bfloat16)",
    ),
    "sequence": (sequence_output(), "", "tensor 'probabilities': the graph says seq("),
}


@dataclass
class Served:
    """A running Triton and a client for it."""

    server: TritonServer
    client: triton.InferenceServerClient

    def infer(
        self, model: str, outputs: tuple[str, ...] = (), **tensors: np.ndarray[Any, Any]
    ) -> dict[str, Any]:
        expected = [triton.InferRequestedOutput(name) for name in outputs]
        result = self.client.infer(
            model, [_input(*item) for item in tensors.items()], outputs=expected, client_timeout=10
        )
        names = [output.name for output in result.get_response().outputs]
        return {name: result.as_numpy(name) for name in names}

    def config(self, model: str) -> Any:
        return self.client.get_model_config(model).config

    def counts(self, model: str, inferences: int = 0) -> tuple[int, int]:
        """Inferences and executions; Triton counts them only after it has answered, so this waits
        for so many ``inferences``."""

        def read() -> tuple[int, int]:
            stats = self.client.get_inference_statistics(model).model_stats[0]
            return stats.inference_count, stats.execution_count

        wait_until(lambda: read()[0] >= inferences, 30, f"{inferences} inferences of {model}")
        return read()

    def log(self) -> str:
        return self.server.log_file.read_text()


def _input(name: str, array: np.ndarray[Any, Any]) -> triton.InferInput:
    tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor


def _add(repository: Path, name: str, graph: onnx.ModelProto, config: str) -> None:
    (repository / name / "1").mkdir(parents=True)
    onnx.save(graph, repository / name / "1" / "model.onnx")
    (repository / name / "config.pbtxt").write_text(f'backend: "onnxruntime"\n{config}')


def _add_external(repository: Path) -> None:
    _add(repository, "external", ROW, 'default_model_filename: "weights.onnx"\n')
    weights = numpy_helper.from_array(np.eye(64, dtype=np.float32) * 3, "w")
    graph = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", FLOAT, "N", 64)],
        [value("y", FLOAT, "N", 64)],
        (weights,),
    )
    file = repository / "external" / "1" / "weights.onnx"
    onnx.save(graph, file, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (file.parent / "weights.bin").stat().st_size >= 64 * 64 * 4


def _add_versions(repository: Path) -> None:
    """Three versions of different widths, of which the version policy serves the second."""
    _add(
        repository,
        "versions",
        identity(FLOAT, "N", 1),
        "version_policy { specific { versions: [2] } }\n",
    )
    for version in (2, 10):
        folder = repository / "versions" / str(version)
        folder.mkdir()
        onnx.save(identity(FLOAT, "N", version), folder / "model.onnx")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("onnxruntime_backend")
    repository = root / "repository"
    for name, (graph, config) in GOOD.items():
        _add(repository, name, graph, config)
    for name, (graph, config, _) in WRONG.items():
        _add(repository, name, graph, config)
    _add_external(repository)
    _add_versions(repository)
    ports = Ports(*free_ports(3))
    with (
        TritonServer(LaunchOptions(ModelRepository(repository), root, ports)) as server,
        triton.InferenceServerClient(f"127.0.0.1:{ports.grpc}") as client,
        ThreadPoolExecutor(4) as pool,
    ):
        # Several at once: a load is mostly a Python process importing.
        try:
            list(pool.map(server.control.load, (*GOOD, "external", "versions")))
        except StubCrashed:  # on a busy machine
            server.restart()
            list(pool.map(server.control.load, (*GOOD, "external", "versions")))
        yield Served(server, client)
    assert not list(Path("/dev/shm").glob(f"{server._prefix}*"))


def _refusal(served: Served, model: str, **tensors: np.ndarray[Any, Any]) -> str:
    with pytest.raises(InferenceServerException) as caught:
        served.infer(model, **tensors)
    return str(caught.value)


def test_every_type_is_completed_and_carried(served: Served) -> None:
    config = served.config("all_types")
    assert (config.max_batch_size, config.HasField("dynamic_batching")) == (4, True)
    for side, sign in ((config.input, "x"), (config.output, "y")):
        types = {
            tensor.name: triton.model_config_pb2.DataType.Name(tensor.data_type) for tensor in side
        }
        assert types == {f"{sign}_{name}": f"TYPE_{name}" for name in ELEMENT_TYPES}
        assert all(list(tensor.dims) == [2] for tensor in side)

    rows = {f"x_{name}": np.stack([row, row]) for name, (_, row) in ELEMENT_TYPES.items()}
    response = served.infer("all_types", **rows)
    for name, (_, row) in ELEMENT_TYPES.items():
        np.testing.assert_array_equal(response[f"y_{name}"], np.stack([row, row]))
        assert response[f"y_{name}"].dtype == row.dtype


def test_metadata_shows_the_batch_axis(served: Served) -> None:
    metadata = served.client.get_model_metadata("all_types")
    assert {tuple(tensor.shape) for tensor in (*metadata.inputs, *metadata.outputs)} == {(-1, 2)}


@pytest.mark.parametrize(
    ("model", "max_batch_size", "dims"),
    [
        ("open_shape", 8, [-1]),
        ("fixed_batch", 0, [8, 3]),
        ("scalar", 0, [1]),
        ("per_row", 4, [1]),
        ("bare_reshape", 4, [1]),
        ("versions", 4, [2]),
        ("external", 4, [64]),
    ],
)
def test_completed_configs(
    served: Served, model: str, max_batch_size: int, dims: list[int]
) -> None:
    config = served.config(model)
    assert config.max_batch_size == max_batch_size
    assert [list(tensor.dims) for tensor in (*config.input, *config.output)] == [dims, dims]


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ("open_shape", (3, 5)),
        ("open_shape", (3, 0)),
        ("fixed_batch", (8, 3)),
        ("scalar", (1,)),
        ("per_row", (3, 1)),
        ("bare_reshape", (3, 1)),
        ("reshaped", (3, 4)),
        ("no_batch_axis", (0, 3)),
        ("versions", (1, 2)),
        ("two_instances", (4, 3)),
    ],
)
def test_identity_returns_its_input(served: Served, model: str, shape: tuple[int, ...]) -> None:
    rows = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    np.testing.assert_array_equal(served.infer(model, x=rows)["y"], rows)


def test_zero_rows_are_refused_and_the_server_lives(served: Served) -> None:
    """Triton 2.51 would die of these if auto-complete had left the empty reshape in."""
    for model in ("per_row", "bare_reshape"):
        assert "byte size mismatch" in _refusal(served, model, x=np.zeros((0, 1), np.float32))
    assert served.server.is_alive()


def test_external_data_beside_the_model(served: Served) -> None:
    rows = np.ones((2, 64), np.float32)
    np.testing.assert_array_equal(served.infer("external", x=rows)["y"], rows * 3)


def test_optional_input_falls_back_on_the_initialiser(served: Served) -> None:
    x, factor = np.array([1, 2], np.float32), np.array([10], np.float32)
    np.testing.assert_array_equal(served.infer("with_default", x=x)["y"], x * 2)
    np.testing.assert_array_equal(served.infer("with_default", x=x, factor=factor)["y"], x * 10)


def test_only_requested_outputs_are_returned(served: Served) -> None:
    a = np.ones((1, 3), np.float32)
    assert served.infer("two_inputs", a=a, b=a).keys() == {"total", "difference"}
    assert served.infer("two_inputs", ("difference",), a=a, b=a).keys() == {"difference"}
    assert served.infer("one_output", a=a, b=a).keys() == {"total"}


def test_a_dynamic_batch_is_one_execution(served: Served) -> None:
    def ask(number: int) -> bool:
        row = np.full((1, 1024), number, np.float32)
        return bool(np.allclose(served.infer("heavy", x=row)["y"], row, rtol=1e-4))

    inferences, executions = served.counts("heavy")
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(320)))
    inferences, executions = (
        after - before
        for after, before in zip(
            served.counts("heavy", inferences + 320), (inferences, executions), strict=True
        )
    )
    assert inferences == 320
    assert executions < 0.8 * inferences


def _together(ask: Callable[[Any], Any], arguments: list[Any]) -> list[Any]:
    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(ask, arguments))


def test_a_bad_request_in_a_merged_batch_fails_alone(served: Served) -> None:
    def ask(index: int) -> float | str:
        try:
            return float(served.infer("lookup", index=np.array([[index]]))["y"][0, 0])
        except InferenceServerException as error:
            return f"{error.status()} {error.message()}"

    inferences, executions = served.counts("lookup")
    first, second, bad, last = _together(ask, [0, 1, 7, 2])
    assert served.counts("lookup", inferences + 3)[1] - executions == 1
    assert (first, second, last) == (10, 20, 30)
    assert bad.startswith(f"StatusCode.INVALID_ARGUMENT {MARKER} model 'lookup' tensor 'index': ")
    assert "idx=7" in bad


def test_different_shapes_in_one_batch_each_get_their_answer(served: Served) -> None:
    def ask(length: int) -> Any:
        a = np.full((1, length), length, np.float32)
        return served.infer("mixed_shapes", a=a, b=a)["total"].tolist()

    inferences, executions = served.counts("mixed_shapes")
    assert _together(ask, [2, 3, 2, 5]) == [[[4.0] * 2], [[6.0] * 3], [[4.0] * 2], [[10.0] * 5]]
    assert served.counts("mixed_shapes", inferences + 4)[1] - executions == 1


def test_a_cancelled_request_is_not_run(served: Served) -> None:
    def compute_ns() -> int:
        stats = served.client.get_inference_statistics("slow").model_stats[0]
        return int(stats.inference_stats.compute_infer.ns)

    rows = np.ones((16, 1024), np.float32)
    served.infer("slow", x=rows)
    idle = compute_ns()
    for _ in range(3):
        served.infer("slow", x=rows)
    one_run_ns = (compute_ns() - idle) / 3

    # Triton's own counts do not help: a request answered with CANCELLED counts as a success.
    before = compute_ns()
    calls = [served.client.async_infer("slow", [_input("x", rows)], _ignore) for _ in range(60)]
    for call in calls[10:]:
        call.cancel()
    served.infer("slow", x=rows)
    assert compute_ns() - before < 40 * one_run_ns


def _ignore(result: object, error: object) -> None:
    """A callback that ignores the result."""


def test_inputs_of_different_lengths_are_the_clients_fault(served: Served) -> None:
    error = _refusal(served, "two_inputs", a=np.zeros((1, 3), "f"), b=np.zeros((1, 4), "f"))
    assert error.startswith("[StatusCode.INVALID_ARGUMENT]")
    assert (
        f"{MARKER} model 'two_inputs' tensor 'b': axis 'L' has length 4 here and 3 in 'a'; "
        in error
    )


def test_text_that_is_not_utf8_is_the_clients_fault(served: Served) -> None:
    rows = {f"x_{name}": row[None] for name, (_, row) in ELEMENT_TYPES.items()}
    rows["x_STRING"] = np.array([[b"fine", b"\xff\xfe"]], np.object_)
    error = _refusal(served, "all_types", **rows)
    assert f"{MARKER} model 'all_types' tensor 'x_STRING': a string is not UTF-8" in error


def test_a_graph_that_does_not_batch_says_so(served: Served) -> None:
    error = _refusal(served, "flattening", x=np.ones((3, 2), np.float32))
    assert error.startswith("[StatusCode.INTERNAL]")
    assert "model 'flattening' tensor 'y': the graph returned shape [6, 1] for 3 rows" in error


def test_no_error_reveals_a_path(served: Served) -> None:
    errors = [
        _refusal(served, "lookup", index=np.array([[9]])),
        _refusal(served, "two_inputs", a=np.zeros((1, 3), "f"), b=np.zeros((1, 4), "f")),
    ]
    assert not any(re.search(r"/\w+/|onnxruntime_src|\.cc|\.h:", error) for error in errors)


@pytest.fixture(scope="module")
def refusals(served: Served) -> dict[str, str]:
    """Triton's error for each invalid model; loaded all at once, since each takes over a second."""

    def refusal(name: str) -> str:
        with pytest.raises(ModelLoadFailed) as caught:
            served.server.control.load(name)
        return str(caught.value)

    return dict(zip(WRONG, _together(refusal, list(WRONG)), strict=True))


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_config_does_not_load(refusals: dict[str, str], name: str) -> None:
    assert f"model '{name}'" in refusals[name].split("TritonModelException")[1]
    assert WRONG[name][2] in refusals[name]


def test_doubtful_options_are_in_the_log(served: Served) -> None:
    log = served.log()
    assert "parameter 'intra_op_threads' is not an option" in log
    assert "model 'two_instances': 2 instances, each with a thread for every core" in log
    assert "tidegate.note" not in log


def test_the_backend_folder_does_not_shadow_onnxruntime() -> None:
    assert not (OURS / "onnxruntime" / "__init__.py").exists()
