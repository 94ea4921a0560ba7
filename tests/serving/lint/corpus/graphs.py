"""Configs against ONNX files."""

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from tests.serving.lint.corpus.case import Case, edited

ONNX = """
backend: "onnxruntime"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 3 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 3 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
parameters { key: "intra_op_thread_count" value { string_value: "1" } }
"""
SEQUENCE = """
platform: "onnxruntime_onnx"
max_batch_size: 8
sequence_batching {
  control_input [
    { name: "START" control [ { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } ] },
    { name: "READY" control [ { kind: CONTROL_SEQUENCE_READY int32_false_true: [ 0, 1 ] } ] }
  ]
}
input [ { name: "INPUT" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "OUTPUT" data_type: TYPE_INT32 dims: [ 1 ] } ]
instance_group [ { kind: KIND_CPU } ]
"""
OLDEST = edited(
    SEQUENCE,
    (
        "sequence_batching {",
        "sequence_batching { max_sequence_idle_microseconds: 10000000 "
        "oldest { max_candidate_sequences: 1024 max_queue_delay_microseconds: 10000 }",
    ),
    (
        "control_input [",
        'control_input [ { name: "END" control [ { kind: CONTROL_SEQUENCE_END '
        'int32_false_true: [ 0, 1 ] } ] }, { name: "CORRID" control [ { kind: '
        "CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } ] },",
    ),
    ("kind: KIND_CPU } ]", "count: 2 kind: KIND_CPU } ]"),
    add='parameters { key: "execute_delay_ms" value { string_value: "3" } }',
)
Axes = Sequence[int | str] | None


def identity(
    axes: Axes,
    out: Axes = (),
    kind: int = TensorProto.FLOAT,
    default: bool = False,
    more: Sequence[str] = (),
) -> Callable[[Path], object]:
    """y = x, with inputs that nothing reads (``more``), or x filled by an initializer."""

    def write(path: Path) -> None:
        value = helper.make_tensor_value_info
        inputs = [value("x", kind, axes), *(value(name, kind, axes) for name in more)]
        output = value("y", kind, axes if out == () else out)
        weights = [helper.make_tensor("x", kind, [1, 3], [0.0] * 3)] if default else []
        nodes = [helper.make_node("Identity", ["x"], ["y"])]
        graph = helper.make_graph(nodes, "g", inputs, [output], weights)
        onnx.save(
            helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)]),
            path,
        )

    return write


def sequence(*controls: tuple[str, int]) -> Callable[[Path], object]:
    """OUTPUT = INPUT, with inputs for the controls."""

    def write(path: Path) -> None:
        value = helper.make_tensor_value_info
        inputs = [value("INPUT", TensorProto.INT32, ["n", 1])]
        inputs += [value(name, kind, ["n", 1]) for name, kind in controls]
        graph = helper.make_graph(
            [helper.make_node("Identity", ["INPUT"], ["OUTPUT"])],
            "g",
            inputs,
            [value("OUTPUT", TensorProto.INT32, ["n", 1])],
        )
        onnx.save(
            helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)]),
            path,
        )

    return write


def summed(path: Path) -> None:
    """y = the sum of each row of x: its shape is not declared, but can be inferred."""
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=1)]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["n", 3])],
        [value("y", TensorProto.FLOAT, ["n", "open"])],
    )
    onnx.save(
        helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)]), path
    )


OPEN = identity(["n", 3])
SIDE = '"y" data_type: TYPE_FP32 dims: [ 3 ]'


def _graph(
    name: str,
    loads: bool,
    write: Callable[[Path], object],
    *edits: tuple[str, str],
    add: str = "",
    config: str = ONNX,
    file: str = "1/model.onnx",
) -> Case:
    return Case(name, loads, {"config.pbtxt": edited(config, *edits, add=add), file: write})


def _out(dims: str) -> tuple[str, str]:
    return SIDE, f'"y" data_type: TYPE_FP32 dims: [ {dims} ]'


def _in(dims: str) -> tuple[str, str]:
    return '"x" data_type: TYPE_FP32 dims: [ 3 ]', f'"x" data_type: TYPE_FP32 dims: [ {dims} ]'


NO_BACKEND = ('backend: "onnxruntime"', "")
SINGLE = ("max_batch_size: 8", "max_batch_size: 0")
INPUTS = 'input [ { name: "x" data_type: TYPE_FP32 dims: [ 3 ] } ]'
OUTPUTS = 'output [ { name: "y" data_type: TYPE_FP32 dims: [ 3 ] } ]'

CASES = [
    _graph("graph", True, OPEN),
    _graph(
        "graph_platform", True, OPEN, ('backend: "onnxruntime"', 'platform: "onnxruntime_onnx"')
    ),
    _graph("graph_no_backend", True, OPEN, NO_BACKEND),
    Case("graph_no_config", True, {"1/model.onnx": OPEN}),
    _graph("graph_no_tensors", True, OPEN, (INPUTS, ""), (OUTPUTS, "")),
    _graph(
        "graph_no_types", True, OPEN, ("data_type: TYPE_FP32 ", ""), ("data_type: TYPE_FP32 ", "")
    ),
    _graph("graph_no_dims", True, OPEN, ("dims: [ 3 ]", ""), ("dims: [ 3 ]", "")),
    _graph("graph_input_unknown", False, OPEN, ('"x"', '"z"')),
    _graph("graph_output_unknown", False, OPEN, ('"y"', '"z"')),
    _graph(
        "graph_input_extra", False, OPEN, add='input { name: "z" data_type: TYPE_FP32 dims: [ 3 ] }'
    ),
    _graph("graph_input_missing", False, identity(["n", 3], more=["z"])),
    _graph("graph_input_missing_no_backend", False, identity(["n", 3], more=["z"]), NO_BACKEND),
    _graph("graph_type_differs", False, OPEN, ("TYPE_FP32", "TYPE_FP64")),
    _graph("graph_type_differs_no_backend", False, OPEN, ("TYPE_FP32", "TYPE_FP64"), NO_BACKEND),
    _graph(
        "graph_output_type", False, OPEN, ('"y" data_type: TYPE_FP32', '"y" data_type: TYPE_INT64')
    ),
    _graph("graph_input_dims", False, OPEN, _in("4")),
    _graph("graph_input_dims_no_backend", False, OPEN, _in("4"), NO_BACKEND),
    _graph("graph_input_open_where_fixed", False, OPEN, _in("-1")),
    _graph("graph_input_fixed_where_open", True, identity(["n", "m"]), _out("-1")),
    _graph("graph_output_fixed_where_open", False, identity(["n", "m"]), _in("-1")),
    _graph("graph_output_open_where_fixed", False, OPEN, _out("-1")),
    _graph("graph_output_dims", False, OPEN, _out("4")),
    _graph("graph_output_rank", False, OPEN, _out("3, 1")),
    _graph("graph_input_rank", False, OPEN, _in("1, 3")),
    _graph("graph_batch_in_dims", False, OPEN, _in("-1, 3"), _out("-1, 3")),
    _graph("graph_unbatched_full", True, OPEN, SINGLE, _in("-1, 3"), _out("-1, 3")),
    _graph("graph_unbatched_bare", False, OPEN, SINGLE),
    _graph("graph_max_absent", True, OPEN, ("max_batch_size: 8", ""), _in("-1, 3"), _out("-1, 3")),
    _graph("graph_max_absent_bare", False, OPEN, ("max_batch_size: 8", "")),
    _graph(
        "graph_max_absent_no_tensors",
        True,
        OPEN,
        ("max_batch_size: 8", ""),
        (INPUTS, ""),
        (OUTPUTS, ""),
    ),
    _graph("graph_batch_fixed_one", False, identity([1, 3])),
    _graph("graph_batch_fixed_at_max", False, identity([8, 3])),
    _graph("graph_batch_fixed_no_backend", False, identity([8, 3]), NO_BACKEND),
    _graph("graph_fixed_unbatched", True, identity([1, 3]), SINGLE, _in("1, 3"), _out("1, 3")),
    _graph("graph_vector", True, identity(["n"]), _in("1"), _out("1")),
    _graph(
        "graph_vector_reshaped",
        True,
        identity(["n"]),
        ("dims: [ 3 ]", "dims: [ 1 ] reshape { shape: [ ] }"),
        ("dims: [ 3 ]", "dims: [ 1 ] reshape { shape: [ ] }"),
    ),
    _graph("graph_vector_three", False, identity(["n"]), _in("3")),
    _graph("graph_scalar", True, identity([]), SINGLE, _in("1"), _out("1")),
    _graph(
        "graph_reshape",
        True,
        OPEN,
        (
            '"x" data_type: TYPE_FP32 dims: [ 3 ]',
            '"x" data_type: TYPE_FP32 dims: [ 1, 3 ] reshape { shape: [ 3 ] }',
        ),
    ),
    _graph(
        "graph_reshape_wrong",
        False,
        OPEN,
        (
            '"x" data_type: TYPE_FP32 dims: [ 3 ]',
            '"x" data_type: TYPE_FP32 dims: [ 3 ] reshape { shape: [ 3, 1 ] }',
        ),
    ),
    _graph("graph_default", True, identity(["n", 3], default=True)),
    _graph(
        "graph_default_optional",
        True,
        identity(["n", 3], default=True),
        ("dims: [ 3 ]", "dims: [ 3 ] optional: true"),
    ),
    _graph("graph_default_unlisted", True, identity(["n", 3], default=True), (INPUTS, "")),
    _graph(
        "graph_optional_without_default", False, OPEN, ("dims: [ 3 ]", "dims: [ 3 ] optional: true")
    ),
    _graph("graph_inferred", True, summed, _out("1")),
    _graph("graph_inferred_open", False, summed, _out("-1")),
    _graph("graph_no_shape", True, identity(None, None), _in("1"), _out("1")),
    _graph("graph_output_unlisted", True, OPEN, (OUTPUTS, "")),
    _graph("graph_broken", False, lambda path: path.write_bytes(b"no graph")),
    _graph("graph_empty", False, lambda path: path.write_bytes(b"")),
    _graph("graph_other_name", False, OPEN, file="1/network.onnx"),
    _graph(
        "graph_named",
        True,
        OPEN,
        add='default_model_filename: "network.onnx"',
        file="1/network.onnx",
    ),
    _graph("graph_in_folder", True, OPEN, file="1/model.onnx/model.onnx"),
    _graph("graph_threads_no_number", False, OPEN, ('string_value: "1"', 'string_value: "many"')),
    _graph(
        "graph_mode_odd",
        False,
        OPEN,
        add='parameters { key: "execution_mode" value { string_value: "2" } }',
    ),
    _graph(
        "graph_arena_odd",
        False,
        OPEN,
        add='parameters { key: "enable_mem_arena" value { string_value: "x" } }',
    ),
    _graph(
        "graph_accelerator_unknown",
        False,
        OPEN,
        add="optimization { execution_accelerators { "
        'cpu_execution_accelerator { name: "warp" } } }',
    ),
    _graph(
        "graph_batch_input",
        False,
        OPEN,
        add='batch_input { kind: BATCH_ELEMENT_COUNT target_name: "n" '
        'data_type: TYPE_INT32 source_input: "x" }',
    ),
    _graph(
        "graph_sequence_state",
        False,
        OPEN,
        add='sequence_batching { state { input_name: "s" output_name: "t" '
        "data_type: TYPE_INT32 dims: [ 1 ] } }",
    ),
    _graph("graph_sequence_no_controls", True, OPEN, add="sequence_batching { }"),
    _graph(
        "graph_string",
        True,
        identity(["n", 3], kind=TensorProto.STRING),
        ("TYPE_FP32", "TYPE_STRING"),
        ("TYPE_FP32", "TYPE_STRING"),
    ),
    _graph(
        "graph_bfloat",
        False,
        identity(["n", 3], kind=TensorProto.BFLOAT16),
        ("TYPE_FP32", "TYPE_BF16"),
        ("TYPE_FP32", "TYPE_BF16"),
    ),
    _graph("graph_no_output_and_extra_input", False, OPEN, (OUTPUTS, ""), ('"x"', '"z"')),
    _graph(
        "graph_second_version_differs",
        True,
        OPEN,
        add="version_policy { specific { versions: 1 } }",
    ),
    Case(
        "graph_newest_differs",
        False,
        {"config.pbtxt": ONNX, "1/model.onnx": OPEN, "2/model.onnx": identity(["n", 4])},
    ),
    Case(
        "graph_oldest_differs",
        True,
        {"config.pbtxt": ONNX, "1/model.onnx": identity(["n", 4]), "2/model.onnx": OPEN},
    ),
    _graph(
        "graph_tensor_type_missing_and_wrong_dims",
        False,
        OPEN,
        ("data_type: TYPE_FP32 dims: [ 3 ]", "dims: [ 4 ]"),
    ),
    _graph(
        "simple_sequence",
        True,
        sequence(("START", TensorProto.INT32), ("READY", TensorProto.INT32)),
        config=SEQUENCE,
    ),
    _graph(
        "simple_dyna_sequence",
        True,
        sequence(
            ("START", TensorProto.INT32),
            ("END", TensorProto.INT32),
            ("READY", TensorProto.INT32),
            ("CORRID", TensorProto.UINT64),
        ),
        config=OLDEST,
    ),
    _graph(
        "sequence_control_unlisted",
        False,
        sequence(
            ("START", TensorProto.INT32), ("READY", TensorProto.INT32), ("MORE", TensorProto.INT32)
        ),
        config=SEQUENCE,
    ),
    _graph(
        "sequence_control_not_in_graph",
        True,
        sequence(("START", TensorProto.INT32)),
        config=SEQUENCE,
    ),
]
