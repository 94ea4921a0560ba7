"""Steps and wires."""

from tests.serving.lint.corpus import tensors
from tests.serving.lint.corpus.case import ENSEMBLE, STUB, Case, edited, ensemble, model
from tests.serving.lint.corpus.graphs import identity

FIRST = 'input_map { key: "x" value: "in" } output_map { key: "y" value: "mid" }'
SECOND = 'input_map { key: "x" value: "mid" } output_map { key: "y" value: "out" }'
IN = 'name: "in" data_type: TYPE_FP32 dims: [ 3 ]'
OUT = 'name: "out" data_type: TYPE_FP32 dims: [ 3 ]'
BIG = "max_batch_size: 8"
OPEN = ("dims: [ 3 ]", "dims: [ -1 ]")


def shared() -> dict:
    """Models that many ensembles use as a step: each is loaded once."""
    out = '"y" data_type: TYPE_FP32 dims: [ 3 ]'
    return {
        "part": model(),
        "single": model((BIG, "max_batch_size: 0")),
        "single_pair": model(
            (BIG, "max_batch_size: 0"),
            ("dims: [ 3 ]", "dims: [ -1, 3 ]"),
            (out, out.replace("[ 3 ]", "[ -1, 3 ]")),
        ),
        "small": model((BIG, "max_batch_size: 4")),
        "large": model((BIG, "max_batch_size: 16")),
        "open": model(OPEN, (out, out.replace("[ 3 ]", "[ -1 ]"))),
        "four": model(("dims: [ 3 ]", "dims: [ 4 ]"), (out, out.replace("[ 3 ]", "[ 4 ]"))),
        "int": model(
            ("TYPE_FP32", "TYPE_INT32"), ('"y" data_type: TYPE_FP32', '"y" data_type: TYPE_INT32')
        ),
        "two_in": model(
            ("input [ {", 'input [ { name: "x2" data_type: TYPE_FP32 dims: [ 3 ] }, {')
        ),
        "two_in_optional": model(
            (
                "input [ {",
                'input [ { name: "x2" data_type: TYPE_FP32 dims: [ 3 ] optional: true }, {',
            )
        ),
        "two_out": model(
            ("output [ {", 'output [ { name: "y2" data_type: TYPE_FP32 dims: [ 3 ] }, {')
        ),
        "streams": model(add="model_transaction_policy { decoupled: true }"),
        "reshaped": model(("dims: [ 3 ]", "dims: [ 3 ] reshape { shape: [ 3, 1 ] }")),
    }


def _both(name: str, loads: bool, step: str, *edits: tuple[str, str], add: str = "") -> Case:
    """Both steps are another model."""
    return ensemble(name, loads, ('"part"', f'"{step}"'), ('"part"', f'"{step}"'), *edits, add=add)


def _steps(*steps: tuple[str, str], head: str = "") -> str:
    texts = [f'{{ model_name: "{name}" model_version: -1 {maps} }}' for name, maps in steps]
    return head + "ensemble_scheduling { step [ " + ", ".join(texts) + " ] }"


def _made(name: str, loads: bool, *steps: tuple[str, str], head: str, others=None) -> Case:
    config = _steps(*steps, head='platform: "ensemble" ' + head)
    return Case(name, loads, {"config.pbtxt": config, "1/": ""}, others or {})


HEAD = f"max_batch_size: 8 input {{ {IN} }} output {{ {OUT} }} "


def _maps(inputs: dict[str, str], outputs: dict[str, str]) -> str:
    parts = [("input_map", inputs), ("output_map", outputs)]
    return " ".join(
        f'{kind} {{ key: "{k}" value: "{v}" }}' for kind, m in parts for k, v in m.items()
    )


TWO_OUT = HEAD + f"output {{ {OUT.replace('out', 'out2', 1)} }} "
ONE = ("part", _maps({"x": "in"}, {"y": "out"}))
ONNX_STEP = {
    "config.pbtxt": 'backend: "onnxruntime" parameters { key: "intra_op_thread_count" value '
    '{ string_value: "1" } } instance_group { count: 1 kind: KIND_CPU }',
    "1/model.onnx": identity(["n", 3]),
}
OPEN_ENDED = model((BIG, "max_batch_size: 4"), stub=tensors.COMPLETES)
# Both length and type differ.
WRONG_IN = IN.replace("[ 3 ]", "[ 4 ]").replace("FP32", "INT32")
WRONG_OUT = OUT.replace("[ 3 ]", "[ 4 ]").replace("FP32", "INT32")


def _unbatched(name: str, loads: bool, edit: tuple[str, str]) -> Case:
    """Neither the ensemble nor its step's config has a batch axis, but the step may complete its
    config. ``edit`` changes the ensemble's inputs."""
    part = model((BIG, "max_batch_size: 0"), stub=tensors.COMPLETES)
    steps = [('"part"', f'"{name}.a"')] * 2
    return ensemble(
        name, loads, *steps, (BIG, "max_batch_size: 0"), edit, others={f"{name}.a": part}
    )


CASES = [
    # A Python model may raise its batch size when it is loaded, to 8 here.
    ensemble(
        "step_grows",
        True,
        ('"part"', '"step_grows.a"'),
        others={"step_grows.a": OPEN_ENDED},
    ),
    # Our backend completes the step: tensors, and batches of 4.
    ensemble(
        "step_completed_to_four",
        False,
        ('"part"', '"step_completed_to_four.a"'),
        others={"step_completed_to_four.a": ONNX_STEP},
    ),
    ensemble(
        "step_completed_from_graph",
        True,
        ('"part"', '"step_completed_from_graph.a"'),
        (BIG, "max_batch_size: 4"),
        others={"step_completed_from_graph.a": ONNX_STEP},
    ),
    ensemble(
        "step_of_graph_unknown_tensor",
        False,
        ('"part"', '"step_of_graph_unknown_tensor.a"'),
        ('key: "x"', 'key: "z"'),
        (BIG, "max_batch_size: 4"),
        others={"step_of_graph_unknown_tensor.a": ONNX_STEP},
    ),
    ensemble("whole_sequence", False, add="sequence_batching { }"),
    ensemble("whole_input_optional", True, (IN, IN + " optional: true")),
    ensemble("whole_input_ragged", True, (IN, IN + " allow_ragged_batch: true")),
    ensemble("whole_input_twice", True, (IN, IN + " }, { " + IN)),
    ensemble("whole_output_twice", True, (OUT, OUT + " }, { " + OUT)),
    ensemble("whole_output_twice_second_wrong", True, (OUT, OUT + " }, { " + WRONG_OUT)),
    ensemble("whole_output_twice_first_wrong", False, (OUT, WRONG_OUT + " }, { " + OUT)),
    ensemble("whole_input_twice_second_wrong", True, (IN, IN + " }, { " + WRONG_IN)),
    ensemble("whole_input_twice_first_wrong", False, (IN, WRONG_IN + " }, { " + IN)),
    # A model that completes its config may add a batch axis, and nothing else changes.
    _unbatched("step_completing_other_type", False, ("TYPE_FP32", "TYPE_INT32")),
    _unbatched("step_completing_one_axis_more", True, ("dims: [ 3 ]", "dims: [ -1, 3 ]")),
    _unbatched("step_completing_two_axes_more", False, ("dims: [ 3 ]", "dims: [ -1, -1, 3 ]")),
    _unbatched("step_completing_other_length", False, ("dims: [ 3 ]", "dims: [ -1, 4 ]")),
    ensemble("whole_dims_reshape_count", False, (IN, IN + " reshape { shape: [ 4 ] }")),
    ensemble("whole_policy_none", False, add="version_policy { specific { versions: 9 } }"),
    ensemble("whole_batch_input", False, add="batch_input { }"),
    ensemble(
        "whole_parameters_env",
        True,
        add='parameters { key: "EXECUTION_ENV_PATH" value { string_value: "/nowhere" } }',
    ),
    ensemble("whole_runtime", True, add='runtime: "model.py"'),
    ensemble("whole_file", True, add='default_model_filename: "nowhere"'),
    ensemble("whole_agents", False, add='model_repository_agents { agents { name: "nobody" } }'),
    ensemble("whole", True),
    ensemble("whole_no_versions_folder", False),
    ensemble("whole_no_platform", False, ('platform: "ensemble"', "")),
    ensemble("whole_python", False, ('platform: "ensemble"', 'backend: "python"')),
    ensemble(
        "whole_and_backend",
        False,
        ('platform: "ensemble"', 'platform: "ensemble" backend: "python"'),
    ),
    Case("whole_no_scheduling", False, {"config.pbtxt": 'platform: "ensemble" ' + HEAD, "1/": ""}),
    Case(
        "whole_no_step",
        False,
        {"config.pbtxt": 'platform: "ensemble" ' + HEAD + "ensemble_scheduling { }", "1/": ""},
    ),
    ensemble("whole_group", False, add="instance_group { kind: KIND_CPU }"),
    ensemble("whole_optimization", False, add="optimization { priority: PRIORITY_MAX }"),
    ensemble("whole_optimization_empty", False, add="optimization { }"),
    ensemble("whole_warm", False, add='model_warmup { name: "w" batch_size: 1 }'),
    ensemble("whole_dynamic", False, add="dynamic_batching { }"),
    ensemble("whole_cached", True, add="response_cache { enable: true }"),
    ensemble("whole_decoupled_said", True, add="model_transaction_policy { decoupled: true }"),
    ensemble(
        "whole_decoupled_said_cached",
        False,
        add="model_transaction_policy { decoupled: true } response_cache { enable: true }",
    ),
    _both("whole_streams", True, "streams"),
    _both("whole_streams_cached", False, "streams", add="response_cache { enable: true }"),
    ensemble("step_no_name", False, ('model_name: "part" ', "")),
    ensemble("step_no_input_map", False, ('input_map { key: "x" value: "in" } ', "")),
    ensemble("step_no_output_map", False, (' output_map { key: "y" value: "mid" }', "")),
    ensemble("step_unknown", False, ('"part"', '"nobody"')),
    ensemble("step_no_version", False, (" model_version: -1", "")),
    ensemble("step_version_zero", False, ("model_version: -1", "model_version: 0")),
    ensemble("step_version_missing", False, ("model_version: -1", "model_version: 7")),
    ensemble("step_version_minus_two", False, ("model_version: -1", "model_version: -2")),
    ensemble("step_unknown_input", False, ('key: "x" value: "in"', 'key: "z" value: "in"')),
    ensemble("step_unknown_output", False, ('key: "y" value: "mid"', 'key: "z" value: "mid"')),
    ensemble("step_key_twice", True, (FIRST, 'input_map { key: "x" value: "in" } ' + FIRST)),
    ensemble("step_is_itself", False, ('"part"', '"step_is_itself"')),
    ensemble("step_batch_smaller", False, ('"part"', '"small"')),
    ensemble("step_batch_larger", True, ('"part"', '"large"')),
    ensemble("step_unbatched_dims_alike", True, ('"part"', '"single"')),
    _both("steps_unbatched", True, "single"),
    _both("steps_unbatched_full_dims", True, "single_pair"),
    ensemble("step_unbatched_full_dims", True, ('"part"', '"single_pair"')),
    _both("whole_unbatched_steps_batched", True, "part", (BIG, "max_batch_size: 0")),
    _both(
        "whole_unbatched_full",
        True,
        "part",
        (BIG, "max_batch_size: 0"),
        ("dims: [ 3 ]", "dims: [ -1, 3 ]"),
        (OUT, OUT.replace("[ 3 ]", "[ -1, 3 ]")),
    ),
    _both(
        "whole_unbatched_fixed_full",
        True,
        "part",
        (BIG, "max_batch_size: 0"),
        ("dims: [ 3 ]", "dims: [ 5, 3 ]"),
        (OUT, OUT.replace("[ 3 ]", "[ 5, 3 ]")),
    ),
    _both("wires_full_rank", False, "part", ("dims: [ 3 ]", "dims: [ -1, 3 ]")),
    _both("wires_open_step", True, "open"),
    _both(
        "wires_open_ends",
        True,
        "part",
        ("dims: [ 3 ]", "dims: [ -1 ]"),
        (OUT, OUT.replace("[ 3 ]", "[ -1 ]")),
    ),
    ensemble("wires_first_four", False, ('"part"', '"four"')),
    ensemble("wires_open_between", True, ('"part"', '"open"'), ("dims: [ 3 ]", "dims: [ 4 ]")),
    _made(
        "wires_clash_behind_open",
        True,
        ("part", _maps({"x": "in"}, {"y": "a"})),
        ("four", _maps({"x": "in"}, {"y": "b"})),
        ("part", _maps({"x": "a"}, {"y": "out"})),
        ("four", _maps({"x": "b"}, {"y": "out2"})),
        head='max_batch_size: 8 input { name: "in" data_type: TYPE_FP32 dims: [ -1 ] } output [ '
        f'{{ {OUT} }}, {{ name: "out2" data_type: TYPE_FP32 dims: [ 4 ] }} ] ',
    ),
    ensemble("wires_type", False, ('"part"', '"int"')),
    _both("wires_type_of_ends", False, "int"),
    _both("wires_reshaped_step", True, "reshaped"),
    ensemble("wires_own_reshape", False, (IN, IN + " reshape { shape: [ 3, 1 ] }")),
    ensemble(
        "wires_own_reshape_fits",
        True,
        (IN, IN.replace("[ 3 ]", "[ 1, 3 ]") + " reshape { shape: [ 3 ] }"),
    ),
    ensemble("wires_out_reshape", False, (OUT, OUT + " reshape { shape: [ 1, 3 ] }")),
    ensemble(
        "wires_out_reshape_fits",
        True,
        (OUT, OUT.replace("[ 3 ]", "[ 3, 1 ]") + " reshape { shape: [ 3 ] }"),
    ),
    ensemble(
        "input_unused", False, (IN, IN + ' }, { name: "more" data_type: TYPE_FP32 dims: [ 3 ]')
    ),
    ensemble(
        "output_unmade", False, (OUT, OUT + ' }, { name: "more" data_type: TYPE_FP32 dims: [ 3 ]')
    ),
    ensemble("no_inputs", False, (f"input [ {{ {IN} }} ]", "")),
    ensemble("no_outputs", False, (f"output [ {{ {OUT} }} ]", "")),
    ensemble("output_is_input", False, ('output [ { name: "out"', 'output [ { name: "in"')),
    ensemble("input_also_output", True, (OUT, OUT + " }, { " + IN)),
    ensemble(
        "middle_also_output",
        True,
        (OUT, OUT + ' }, { name: "mid" data_type: TYPE_FP32 dims: [ 3 ]'),
    ),
    ensemble("middle_unmade", False, ('value: "mid" } },', 'value: "other" } },')),
    ensemble("made_twice", False, ('value: "mid" } },', 'value: "out" } },')),
    ensemble("input_made_by_step", False, ('value: "mid" } },', 'value: "in" } },')),
    ensemble("steps_wait_for_each_other", False, ('key: "x" value: "in"', 'key: "x" value: "out"')),
    _made(
        "steps_in_other_order",
        True,
        ("part", _maps({"x": "mid"}, {"y": "out"})),
        ("part", _maps({"x": "in"}, {"y": "mid"})),
        head=HEAD,
    ),
    _made("one_step", True, ONE, head=HEAD),
    _made("second_output_unmapped", True, ("two_out", _maps({"x": "in"}, {"y": "out"})), head=HEAD),
    _made(
        "second_output_unused",
        False,
        ("two_out", _maps({"x": "in"}, {"y": "out", "y2": "z"})),
        head=HEAD,
    ),
    _made(
        "two_outputs_one_tensor",
        False,
        ("two_out", _maps({"x": "in"}, {"y": "out", "y2": "out"})),
        head=HEAD,
    ),
    _made("second_input_unmapped", False, ("two_in", _maps({"x": "in"}, {"y": "out"})), head=HEAD),
    _made(
        "second_input_optional",
        True,
        ("two_in_optional", _maps({"x": "in"}, {"y": "out"})),
        head=HEAD,
    ),
    _made(
        "one_tensor_two_inputs",
        True,
        ("two_in", _maps({"x": "in", "x2": "in"}, {"y": "out"})),
        head=HEAD,
    ),
    _made(
        "independent_steps",
        True,
        ONE,
        ("part", _maps({"x": "in2"}, {"y": "out2"})),
        head=f"max_batch_size: 8 input [ {{ {IN} }}, {{ {IN.replace('in', 'in2', 1)} }} ] "
        f"output [ {{ {OUT} }}, {{ {OUT.replace('out', 'out2', 1)} }} ] ",
    ),
    _made("dead_end", False, ONE, ("part", _maps({"x": "in"}, {"y": "nowhere"})), head=HEAD),
    _made(
        "island",
        False,
        ONE,
        ("part", _maps({"x": "a"}, {"y": "b"})),
        ("part", _maps({"x": "b"}, {"y": "a"})),
        head=HEAD,
    ),
    _made(
        "joined_streams",
        False,
        ("streams", _maps({"x": "in"}, {"y": "a"})),
        ("streams", _maps({"x": "in"}, {"y": "b"})),
        ("two_in", _maps({"x": "a", "x2": "b"}, {"y": "out"})),
        head=HEAD,
    ),
    _made(
        "stream_joined_with_input",
        False,
        ("streams", _maps({"x": "in"}, {"y": "a"})),
        ("two_in", _maps({"x": "a", "x2": "in"}, {"y": "out"})),
        head=HEAD,
    ),
    _made(
        "stream_in_a_row",
        True,
        ("streams", _maps({"x": "in"}, {"y": "a"})),
        ("streams", _maps({"x": "a"}, {"y": "out"})),
        head=HEAD,
    ),
    _made(
        "streams_to_two_outputs",
        False,
        ("streams", _maps({"x": "in"}, {"y": "out"})),
        ("streams", _maps({"x": "in"}, {"y": "out2"})),
        head=TWO_OUT,
    ),
    _made(
        "stream_and_input_to_outputs",
        False,
        ("streams", _maps({"x": "in"}, {"y": "out"})),
        ("part", _maps({"x": "in"}, {"y": "out2"})),
        head=TWO_OUT,
    ),
    ensemble(
        "nested",
        True,
        ('"part"', '"nested.inner"'),
        (FIRST, FIRST.replace('"x"', '"in"').replace('"y"', '"out"')),
        others={"nested.inner": {"config.pbtxt": ENSEMBLE, "1/": ""}},
    ),
    ensemble(
        "ring",
        False,
        ('"part"', '"ring.b"'),
        (FIRST, FIRST.replace('"x"', '"in"').replace('"y"', '"out"')),
        others={
            "ring.b": {
                "config.pbtxt": edited(
                    ENSEMBLE,
                    ('"part"', '"ring"'),
                    (FIRST, FIRST.replace('"x"', '"in"').replace('"y"', '"out"')),
                ),
                "1/": "",
            }
        },
    ),
    ensemble(
        "nested_streams_cached",
        False,
        ('"part"', '"nested_streams_cached.inner"'),
        (FIRST, FIRST.replace('"x"', '"in"').replace('"y"', '"out"')),
        add="response_cache { enable: true }",
        others={
            "nested_streams_cached.inner": {
                "1/": "",
                "config.pbtxt": edited(ENSEMBLE, ('"part"', '"streams"')),
            }
        },
    ),
    ensemble(
        "step_refused",
        False,
        ('"part"', '"step_refused.bad"'),
        others={"step_refused.bad": model(add="dynamic_batching { preferred_batch_size: 0 }")},
    ),
    ensemble(
        "step_step_refused",
        False,
        ('"part"', '"step_step_refused.b"'),
        (FIRST, FIRST.replace('"x"', '"in"').replace('"y"', '"out"')),
        others={
            "step_step_refused.c": model((BIG, "max_batch_size: -1")),
            "step_step_refused.b": {
                "1/": "",
                "config.pbtxt": edited(ENSEMBLE, ('"part"', '"step_step_refused.c"')),
            },
        },
    ),
    ensemble(
        "step_without_version",
        False,
        ('"part"', '"step_without_version.a"'),
        others={"step_without_version.a": {"config.pbtxt": model()["config.pbtxt"], "1.txt": ""}},
    ),
    ensemble(
        "step_pins_unserved",
        False,
        ('"part" model_version: -1', '"step_pins_unserved.a" model_version: 1'),
        others={"step_pins_unserved.a": {**model(), "2/model.py": STUB}},
    ),
    ensemble("step_namespace", True, ('"part"', '"part" model_namespace: "other"')),
    ensemble("whole_priority", True, add='parameters { key: "a" value { string_value: "b" } }'),
    ensemble(
        "step_completed",
        True,
        ('"part"', '"step_completed.a"'),
        others={
            "step_completed.a": {
                "config.pbtxt": 'backend: "python"',
                "1/model.py": """
class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "x", "data_type": "TYPE_FP32", "dims": [3]})
        config.add_output({"name": "y", "data_type": "TYPE_FP32", "dims": [3]})
        config.set_max_batch_size(8)
        return config
""",
            }
        },
    ),
]
CASES = [case for case in CASES if case.name != "whole_no_versions_folder"]
CASES.append(Case("whole_no_versions_folder", False, {"config.pbtxt": ENSEMBLE}))
