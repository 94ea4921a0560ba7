"""Files, versions, backends, environments, and how a config is written."""

import io
import tarfile
from dataclasses import replace

from tests.serving.lint.corpus.case import PYTHON, STUB, Case, edited, python

NAMED = 'backend: "python"'
TABLE = {"config.pbtxt": PYTHON, "1/model.py": STUB}


def _files(name: str, loads: bool, hangs: bool = False, **files) -> Case:
    return Case(name, loads, files, hangs=hangs)


def _backend(name: str, loads: bool, fields: str, **files) -> Case:
    return python(name, loads, (NAMED, fields), **files)


def _policy(name: str, loads: bool, policy: str) -> Case:
    return python(name, loads, add=policy)


def _parameter(name: str, loads: bool, key: str, value: str, hangs: bool = False, **files) -> Case:
    text = f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
    case = python(name, loads, add=text, **files)
    return Case(name, loads, case.files, hangs=hangs)


def _link(target: str):
    return lambda path: path.symlink_to(target)


def _written(name: str, loads: bool, *edits: tuple[str, str], add: str = "") -> Case:
    return python(name, loads, *edits, add=add)


def _bytes(name: str, loads: bool, content: bytes) -> Case:
    return Case(name, loads, {"config.pbtxt": content, "1/model.py": STUB})


def _archive(*members: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for member in members:
            tar.addfile(tarfile.TarInfo(member))
    return packed.getvalue()


CASES = [
    *(_files(f"name{mark}odd", False, hangs=True, **TABLE) for mark in " '(&$;"),
    *(_files(f"name{mark}odd", True, **TABLE) for mark in ",=+@"),
    _files("_name", True, **TABLE),
    _files("version_huge", False, hangs=True, **{**TABLE, "99999999999999999999/a": ""}),
    _files("version_float", False, hangs=True, **{"config.pbtxt": PYTHON, "1.0/model.py": STUB}),
    _files("version_negative", False, hangs=True, **{"config.pbtxt": PYTHON, "-1/model.py": STUB}),
    _written(
        "optimization", True, add="optimization { priority: PRIORITY_MAX graph { level: 1 } }"
    ),
    _written(
        "accelerators",
        True,
        add='optimization { execution_accelerators { cpu_execution_accelerator { name: "any" } } }',
    ),
    _written("metric_tags", True, add='metric_tags { key: "a" value: "b" }'),
    _written("operations", True, add='model_operations { op_library_filename: "no.so" }'),
    _written("cc_filenames", True, add='cc_model_filenames { key: "8.0" value: "no.plan" }'),
    _written("comment_in_string", True, ('name: "x"', 'name: "x#y"')),
    _written("escaped_quote", True, ('name: "x"', r'name: "x\"y"')),
    _written("octal_escape", True, ('name: "x"', r'name: "\170"')),
    _written("unicode_escape", True, ('name: "x"', r'name: "\u0078"')),
    _written("unicode_escape_short", False, ('name: "x"', r'name: "\u78"')),
    _written("single_in_double", True, ('name: "x"', """name: "it's" """)),
    _written("unfinished_string", False, ('name: "x"', 'name: "x')),
    _written("colon_missing", False, ("max_batch_size: 8", "max_batch_size 8")),
    _written("equals_sign", False, ("max_batch_size: 8", "max_batch_size = 8")),
    _written("capital_field", False, ("max_batch_size: 8", "Max_Batch_Size: 8")),
    _written("camel_field", False, ("max_batch_size: 8", "maxBatchSize: 8")),
    _written("field_number", False, add="4: 8"),
    _written("extension", False, add="[other.extension]: 3"),
    _written("any_url", False, add="[type.googleapis.com/x] { }"),
    _written("trailing_semicolons", True, ("max_batch_size: 8", "max_batch_size: 8;")),
    _written("double_semicolons", False, ("max_batch_size: 8", "max_batch_size: 8;;")),
    _written("leading_comma", True, ("max_batch_size: 8", ", max_batch_size: 8")),
    _written("number_exponent", False, ("max_batch_size: 8", "max_batch_size: 8e0")),
    _written("number_underscore", False, ("max_batch_size: 8", "max_batch_size: 1_0")),
    _written("number_letters", False, ("max_batch_size: 8", "max_batch_size: 8x")),
    _written("number_suffix_f", False, ("max_batch_size: 8", "max_batch_size: 8f")),
    _written("number_hex_minus", True, ("dims: [ 3 ]", "dims: [ -0x1 ]")),
    _written("number_minus_zero", False, ("dims: [ 3 ]", "dims: [ -0 ]")),
    _written(
        "float_for_float", True, add="sequence_batching { direct { minimum_slot_utilization: .5 } }"
    ),
    _written(
        "float_inf", False, add="sequence_batching { direct { minimum_slot_utilization: inf } }"
    ),
    _written(
        "float_nan", True, add="sequence_batching { direct { minimum_slot_utilization: nan } }"
    ),
    _written("float_f", True, add="sequence_batching { direct { minimum_slot_utilization: 1f } }"),
    _written(
        "float_f_twice", False, add="sequence_batching { direct { minimum_slot_utilization: 1ff } }"
    ),
    _written("uint_negative", False, add="dynamic_batching { max_queue_delay_microseconds: -1 }"),
    _written(
        "uint_huge",
        False,
        add="dynamic_batching { max_queue_delay_microseconds: 18446744073709551616 }",
    ),
    _written("list_of_lists", False, ("dims: [ 3 ]", "dims: [ [ 3 ] ]")),
    _written("list_then_more", True, ("dims: [ 3 ]", "dims: [ 3 ] dims: 4")),
    _written("list_for_scalar", False, ("max_batch_size: 8", "max_batch_size: [ 8 ]")),
    _written(
        "list_of_strings_in_pieces",
        True,
        add="batch_input { kind: BATCH_ELEMENT_COUNT "
        'target_name: [ "a" "b" ] data_type: TYPE_INT32 source_input: "x" }',
    ),
    _written(
        "mixed_brackets",
        False,
        ("instance_group [ { kind: KIND_CPU } ]", "instance_group { kind: KIND_CPU >"),
    ),
    _written(
        "message_with_parentheses",
        False,
        ("instance_group [ { kind: KIND_CPU } ]", "instance_group ( kind: KIND_CPU )"),
    ),
    _written("enum_qualified", False, ("data_type: TYPE_FP32", "data_type: DataType.TYPE_FP32")),
    _written("enum_number_negative", True, ("data_type: TYPE_FP32", "data_type: -3")),
    _written("bool_two", False, ("dims: [ 3 ]", "dims: [ 3 ] optional: 2")),
    _written("bool_zero", True, ("dims: [ 3 ]", "dims: [ 3 ] optional: 0")),
    _written("bool_f", True, ("dims: [ 3 ]", "dims: [ 3 ] optional: f")),
    _written("bool_false_capital", True, ("dims: [ 3 ]", "dims: [ 3 ] optional: False")),
    _written("bool_hex", True, ("dims: [ 3 ]", "dims: [ 3 ] optional: 0x1")),
    _written("map_as_list", True, add="parameters [ ]"),
    _written(
        "map_value_twice",
        False,
        add='parameters { key: "a" value { string_value: "a" } value { string_value: "b" } }',
    ),
    _written(
        "oneof_twice",
        False,
        add='model_warmup { inputs { key: "x" value { zero_data: true random_data: true } } }',
    ),
    _written("empty_list_comma", False, ("dims: [ 3 ]", "dims: [ , ]")),
    _written("template", False, ("max_batch_size: 8", "max_batch_size: ${batch}")),
    _written("tab_and_vertical_tab", True, ("max_batch_size: 8", "max_batch_size:\t\v8")),
    _written("control_character", False, ("max_batch_size: 8", "max_batch_size:\x018")),
    _written("control_character_in_string", True, ('name: "x"', 'name: "\x01"')),
    _written("control_character_in_comment", True, add="# \x01"),
    _written("utf8_comment", True, add="# caf\u00e9 \u2713"),
    _bytes("only_carriage_returns", True, PYTHON.replace("\n", "\r").encode()),
    _files("no_version", False, **{"config.pbtxt": PYTHON}),
    _files("version_v1", False, **{"config.pbtxt": PYTHON, "v1/model.py": STUB}),
    _files("version_01", False, **{"config.pbtxt": PYTHON, "01/model.py": STUB}),
    _files("version_zero", True, **{"config.pbtxt": PYTHON, "0/model.py": STUB}),
    _files("version_configs_only", False, **{"config.pbtxt": PYTHON, "configs/a.pbtxt": PYTHON}),
    _files("version_warmup_only", False, **{"config.pbtxt": PYTHON, "warmup/a": "x"}),
    _files("version_high", True, **{"config.pbtxt": PYTHON, "20240101/model.py": STUB}),
    _files("version_is_file", False, **{"config.pbtxt": PYTHON, "1": STUB}),
    _files("version_superscript", False, **{"config.pbtxt": PYTHON, "²/model.py": STUB}),
    _files("version_beside_superscript", True, **{**TABLE, "²/model.py": STUB}),
    _files(
        "version_beside_others",
        True,
        **{**TABLE, "assets/a": "", "notes.txt": "", "v2/model.py": ""},
    ),
    _files(
        "version_link", True, **{"config.pbtxt": PYTHON, "real/model.py": STUB, "1": _link("real")}
    ),
    _files("link_broken", False, **{**TABLE, "data": _link("nowhere")}),
    _files("link_broken_in_version", True, **{**TABLE, "1/data": _link("nowhere")}),
    _files("config_link_broken", False, **{"1/model.py": STUB, "config.pbtxt": _link("nowhere")}),
    _files(
        "config_link",
        True,
        **{"1/model.py": STUB, "real.pbtxt": PYTHON, "config.pbtxt": _link("real.pbtxt")},
    ),
    _files("config_is_folder", False, hangs=True, **{"1/model.py": STUB, "config.pbtxt/": ""}),
    _files("model_py_missing", False, hangs=True, **{"config.pbtxt": PYTHON, "1/": ""}),
    _files(
        "model_py_link_broken",
        False,
        hangs=True,
        **{"config.pbtxt": PYTHON, "1/model.py": _link("no")},
    ),
    _files(
        "model_py_named",
        True,
        **{"config.pbtxt": PYTHON + 'default_model_filename: "m.py"', "1/m.py": STUB},
    ),
    _files("version_phantom", False, hangs=True, **{**TABLE, "2.bak/model.py": STUB}),
    _files("two_versions", True, **{**TABLE, "2/model.py": STUB}),
    _policy("policy_latest", True, "version_policy { latest { num_versions: 2 } }"),
    _policy("policy_latest_zero", False, "version_policy { latest { num_versions: 0 } }"),
    _policy("policy_latest_empty", False, "version_policy { latest { } }"),
    _policy("policy_all", True, "version_policy { all { } }"),
    _policy("policy_empty", True, "version_policy { }"),
    _policy("policy_specific", True, "version_policy { specific { versions: 1 } }"),
    _policy("policy_specific_some", True, "version_policy { specific { versions: [ 1, 9 ] } }"),
    _policy("policy_specific_none", False, "version_policy { specific { versions: [ 9 ] } }"),
    _policy("policy_specific_empty", False, "version_policy { specific { } }"),
    _policy("policy_two", False, "version_policy { all { } latest { num_versions: 1 } }"),
    _written("name_same", True, add='name: "name_same"'),
    _written("name_other", False, add='name: "another"'),
    _written("name_case", False, add='name: "Name_case"'),
    _backend("backend_misspelt", False, 'backend: "pyhton"'),
    _backend("backend_capital", False, 'backend: "Python"'),
    _backend("backend_unheard_of", False, 'backend: "frobnicate"'),
    _backend("backend_none_but_file", True, ""),
    _backend("backend_platform_too", True, 'backend: "python" platform: "whatever"'),
    _backend("backend_platform_known", True, 'backend: "python" platform: "onnxruntime_onnx"'),
    _backend("backend_platform_ensemble", False, 'backend: "python" platform: "ensemble"'),
    _backend(
        "backend_onnx_platform_other", False, 'backend: "onnxruntime" platform: "tensorrt_plan"'
    ),
    _backend("backend_tensorrt_platform_odd", False, 'backend: "tensorrt" platform: "tensorrt"'),
    _backend("platform_onnxruntime", False, 'platform: "onnxruntime"'),
    _backend("platform_python", False, 'platform: "python"'),
    _backend("platform_unknown", False, 'platform: "caffe2_netdef"'),
    _files(
        "backend_none_no_file",
        False,
        **{"config.pbtxt": edited(PYTHON, (NAMED, "")), "1/weights.bin": "x"},
    ),
    _files(
        "backend_of_name.nobody",
        False,
        **{"config.pbtxt": edited(PYTHON, (NAMED, "")), "1/weights.bin": "x"},
    ),
    _files(
        "backend_none_named_file",
        False,
        **{
            "config.pbtxt": edited(PYTHON, (NAMED, 'default_model_filename: "m.bin"')),
            "1/m.bin": "x",
        },
    ),
    _files(
        "backend_of_named_file",
        True,
        **{
            "config.pbtxt": edited(PYTHON, (NAMED, 'default_model_filename: "model.py"')),
            "1/model.py": STUB,
        },
    ),
    _files(
        "backend_hidden_by_folder",
        False,
        **{"config.pbtxt": edited(PYTHON, (NAMED, "")), "1/model.py": STUB, "0notes/a": ""},
    ),
    _files(
        "backend_hidden_by_dot_folder",
        False,
        **{
            "config.pbtxt": edited(PYTHON, (NAMED, "")),
            "1/model.py": STUB,
            ".ipynb_checkpoints/a": "",
        },
    ),
    _files("backend_said_beside_dot_folder", True, **{**TABLE, ".ipynb_checkpoints/a": ""}),
    _backend("runtime_python", False, 'backend: "python" runtime: "model.py"'),
    _backend("runtime_library", True, 'backend: "python" runtime: "libtriton_python.so"'),
    _backend("runtime_unknown", False, 'backend: "python" runtime: "libtriton_nobody.so"'),
    _backend(
        "runtime_roundabout", True, 'backend: "python" runtime: "../python/libtriton_python.so"'
    ),
    _backend("runtime_escapes", False, 'backend: "python" runtime: "../other/libtriton_python.so"'),
    _parameter("env_missing", False, "EXECUTION_ENV_PATH", "/nowhere/env.tar.gz"),
    _parameter(
        "env_in_model_missing", False, "EXECUTION_ENV_PATH", "$$TRITON_MODEL_DIRECTORY/env.tar.gz"
    ),
    _parameter(
        "env_in_version_missing",
        False,
        "EXECUTION_ENV_PATH",
        "$$TRITON_MODEL_DIRECTORY/../env.tar.gz",
    ),
    _parameter("env_relative_missing", False, "EXECUTION_ENV_PATH", "env.tar.gz"),
    _parameter("env_empty", True, "EXECUTION_ENV_PATH", ""),
    _parameter(
        "env_no_archive",
        False,
        "EXECUTION_ENV_PATH",
        "$$TRITON_MODEL_DIRECTORY/env.tar.gz",
        **{"env.tar.gz": "no archive"},
    ),
    _parameter("cpu_only_no", True, "FORCE_CPU_ONLY_INPUT_TENSORS", "no"),
    _parameter("cpu_only_odd", False, "FORCE_CPU_ONLY_INPUT_TENSORS", "false"),
    _parameter("strategy_missing", False, "TRITON_BATCH_STRATEGY_PATH", "/nowhere/b.so"),
    _written(
        "strategy_with_sequence",
        False,
        add="sequence_batching { } parameters { key: "
        '"TRITON_BATCH_STRATEGY_PATH" value { string_value: "/nowhere/b.so" } }',
    ),
    _written("agents", False, add='model_repository_agents { agents { name: "nobody" } }'),
    _written(
        "agents_checksum", False, add='model_repository_agents { agents { name: "checksum" } }'
    ),
    replace(_written("agents_none", False, add="model_repository_agents { }"), hangs=True),
    _written(
        "model_metrics",
        False,
        add="model_metrics { metric_control { metric_identifier { "
        'family: "nv_inference_first_response_histogram_ms" } histogram_options { buckets: 1 } } }',
    ),
    _written("inflight", False, add="ensemble_scheduling { max_inflight_requests: 2 }"),
    _written("field_unknown", False, add="max_batch: 3"),
    _written("field_unknown_inside", False, ("dims: [ 3 ]", "dims: [ 3 ] shape: [ 3 ]")),
    _written("field_twice", False, add="max_batch_size: 8"),
    _written(
        "field_commas", True, ('name: "x" data_type: TYPE_FP32', 'name: "x", data_type: TYPE_FP32;')
    ),
    _written("list_trailing_comma", False, ("dims: [ 3 ]", "dims: [ 3, ]")),
    _written("list_of_messages_trailing_comma", False, ("} ]\noutput", "}, ]\noutput")),
    _written("list_without_comma", False, ("dims: [ 3 ]", "dims: [ 3 3 ]")),
    _written("colon_before_message", True, ("input [", "input: [")),
    _written(
        "angles",
        True,
        ("instance_group [ { kind: KIND_CPU } ]", "instance_group < kind: KIND_CPU >"),
    ),
    _written("comment", True, add="# ready"),
    _written("comment_slashes", False, add="// ready"),
    _written("enum_as_number", True, ("data_type: TYPE_FP32", "data_type: 11")),
    _written("enum_number_unknown", True, ("data_type: TYPE_FP32", "data_type: 99")),
    _written("enum_quoted", False, ("data_type: TYPE_FP32", 'data_type: "TYPE_FP32"')),
    _written("enum_unknown", False, ("TYPE_FP32", "TYPE_FLOAT")),
    _written("enum_lower", False, ("TYPE_FP32", "type_fp32")),
    _written("kind_as_number", True, ("kind: KIND_CPU", "kind: 2")),
    _written("kind_number_unknown", False, ("kind: KIND_CPU", "kind: 7")),
    _written("number_float", False, ("max_batch_size: 8", "max_batch_size: 8.0")),
    _written("number_quoted", False, ("max_batch_size: 8", 'max_batch_size: "8"')),
    _written("number_hex", True, ("max_batch_size: 8", "max_batch_size: 0x8")),
    _written("number_octal", True, ("max_batch_size: 8", "max_batch_size: 010")),
    _written("number_bad_octal", False, ("max_batch_size: 8", "max_batch_size: 08")),
    _written("number_too_big", False, ("max_batch_size: 8", "max_batch_size: 9999999999")),
    _written("number_plus", False, ("max_batch_size: 8", "max_batch_size: +8")),
    _written("number_space_minus", True, ("dims: [ 3 ]", "dims: [ - 1 ]")),
    _written(
        "count_negative_versions", False, add="version_policy { latest { num_versions: -1 } }"
    ),
    _written("bool_capital", True, ("dims: [ 3 ]", "dims: [ 3 ] optional: True")),
    _written("bool_number", True, ("dims: [ 3 ]", "dims: [ 3 ] optional: 1")),
    _written("bool_letter", True, ("dims: [ 3 ]", "dims: [ 3 ] optional: t")),
    _written("bool_yes", False, ("dims: [ 3 ]", "dims: [ 3 ] optional: yes")),
    _written("bool_quoted", False, ("dims: [ 3 ]", 'dims: [ 3 ] optional: "true"')),
    _written("bool_capitals", False, ("dims: [ 3 ]", "dims: [ 3 ] optional: TRUE")),
    _written("string_single_quotes", True, ('name: "x"', "name: 'x'")),
    _written("string_in_pieces", True, ('backend: "python"', 'backend: "py" "thon"')),
    _written("string_bare", False, ('name: "x"', "name: x")),
    _written("string_curly_quotes", False, ('name: "x"', "name: “x”")),
    _written("string_two_lines", False, ('name: "x"', 'name: "x\n"')),
    _written("string_escape", True, ('name: "x"', r'name: "\x78"')),
    _written("string_bad_escape", False, ('name: "x"', r'name: "\q"')),
    _written("brace_missing", False, ("dims: [ 3 ] } ]\noutput", "dims: [ 3 ] ]\noutput")),
    _written("brace_too_many", False, add="}"),
    _written("bracket_missing", False, ("dims: [ 3 ]", "dims: [ 3")),
    _written("json", False, (PYTHON, '{ "backend": "python" }')),
    _written("message_not_list", True, ("input [ {", "input {"), ("} ]", "}")),
    _written("list_empty", True, add="batch_input [ ]"),
    _written("scalar_twice_in_message", False, ("dims: [ 3 ]", 'dims: [ 3 ] name: "z"')),
    _written("parameter_no_value", True, add='parameters { key: "a" }'),
    _written("parameter_no_key", True, add='parameters { value { string_value: "a" } }'),
    _written("parameter_plain", False, add='parameters { key: "a" value: "b" }'),
    _written(
        "parameter_twice",
        True,
        add='parameters [ { key: "a" value { string_value: "b" } }, '
        '{ key: "a" value { string_value: "c" } } ]',
    ),
    _bytes("latin1_comment", True, ("# caf\u00e9" + PYTHON).encode("latin-1")),
    _bytes(
        "latin1_string",
        True,
        edited(PYTHON, add='parameters { key: "caf\u00e9" value { } }').encode("latin-1"),
    ),
    _bytes("latin1_tensor", True, edited(PYTHON, ('"x"', '"caf\u00e9"')).encode("latin-1")),
    _bytes("utf8_string", True, edited(PYTHON, ('"x"', '"caf\u00e9"')).encode()),
    _bytes("byte_order_mark", False, b"\xef\xbb\xbf" + PYTHON.encode()),
    _bytes("windows_lines", True, PYTHON.replace("\n", "\r\n").encode()),
    _bytes("utf16", False, PYTHON.encode("utf-16")),
    _bytes("zero_byte", False, PYTHON.encode() + b"\0"),
    _bytes("form_feed", True, PYTHON.encode() + b"\f"),
    _bytes("no_break_space", False, PYTHON.replace("dims: [", "dims:\u00a0[").encode()),
]
