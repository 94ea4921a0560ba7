"""Instance groups, warm-up, and where a model runs."""

from tests.serving.lint.corpus.case import Case, python

GROUP = "instance_group [ { kind: KIND_CPU } ]"


def _group(name: str, loads: bool, inside: str) -> Case:
    return python(name, loads, (GROUP, f"instance_group {{ {inside} }}"))


def _warm(name: str, loads: bool, inside: str, *edits: tuple[str, str], **files) -> Case:
    return python(name, loads, *edits, add=f"model_warmup {{ {inside} }}", **files)


def _sample(data: str, name: str = "x", dims: str = "3", kind: str = "TYPE_FP32") -> str:
    kind = f"data_type: {kind} " if kind else ""
    tensor = f'inputs {{ key: "{name}" value {{ {kind}dims: [ {dims} ] {data} }} }}'
    return f'name: "w" batch_size: 1 {tensor}'


CASES = [
    python("no_group", True, (GROUP, "")),
    _group("group_empty", True, ""),
    _group("group_auto", True, "kind: KIND_AUTO"),
    _group("group_model", True, "kind: KIND_MODEL"),
    _group("group_two", True, "count: 2 kind: KIND_CPU"),
    _group("group_count_zero", True, "count: 0 kind: KIND_CPU"),
    _group("group_count_negative", True, "count: -1 kind: KIND_CPU"),
    _group("group_cpu_gpus", False, "kind: KIND_CPU gpus: [ 0 ]"),
    _group("group_model_gpus", False, "kind: KIND_MODEL gpus: [ 0 ]"),
    _group("group_profile", False, 'kind: KIND_CPU profile: "1"'),
    _group("group_model_profile", False, 'kind: KIND_MODEL profile: "1"'),
    _group("group_passive", True, "kind: KIND_CPU passive: true"),
    _group(
        "group_named", True, 'name: "g" kind: KIND_CPU } instance_group { name: "g" kind: KIND_CPU'
    ),
    _group("group_host_policy", True, 'kind: KIND_CPU host_policy: "none"'),
    _group(
        "group_secondary",
        True,
        "kind: KIND_CPU secondary_devices { kind: KIND_NVDLA device_id: 0 }",
    ),
    _group("group_rate", True, 'kind: KIND_CPU rate_limiter { resources { name: "r" count: 4 } }'),
    _warm("warm", True, _sample("zero_data: true")),
    _warm("warm_random", True, _sample("random_data: true")),
    _warm("warm_no_inputs", False, 'name: "w" batch_size: 1'),
    _warm("warm_batch_zero", True, 'name: "w"'),
    _warm(
        "warm_batch_zero_open",
        True,
        'name: "w" inputs { key: "x" value { dims: [ -1 ] zero_data: true } }',
    ),
    _warm(
        "warm_open", False, _sample("zero_data: true", dims="-1"), ("dims: [ 3 ]", "dims: [ -1 ]")
    ),
    _warm("warm_no_data", False, _sample("")),
    _warm("warm_no_type", False, _sample("zero_data: true", kind="")),
    _warm("warm_other_type", False, _sample("zero_data: true", kind="TYPE_INT8")),
    _warm("warm_other_dims", False, _sample("zero_data: true", dims="4")),
    _warm("warm_other_rank", False, _sample("zero_data: true", dims="3, 1")),
    _warm("warm_batch_in_dims", False, _sample("zero_data: true", dims="1, 3")),
    _warm("warm_unknown_input", False, _sample("zero_data: true", name="z")),
    _warm(
        "warm_with_extra_input",
        True,
        _sample("zero_data: true") + ' inputs { key: "z" value { data_type: TYPE_FP32 '
        "dims: [ 1 ] zero_data: true } }",
    ),
    _warm("warm_no_file", False, _sample('input_data_file: "none"')),
    _warm("warm_file", True, _sample('input_data_file: "d"'), **{"warmup/d": b"\0" * 12}),
    _warm("warm_short_file", False, _sample('input_data_file: "d"'), **{"warmup/d": b"\0" * 8}),
    _warm("warm_long_file", True, _sample('input_data_file: "d"'), **{"warmup/d": b"\0" * 20}),
    _warm("warm_file_elsewhere", False, _sample('input_data_file: "d"'), **{"1/d": b"\0" * 12}),
    _warm("warm_large_batch", True, _sample("zero_data: true").replace("size: 1", "size: 64")),
    _warm(
        "warm_string",
        True,
        _sample("zero_data: true", kind="TYPE_STRING"),
        ("TYPE_FP32", "TYPE_STRING"),
    ),
    _warm(
        "warm_second_input_missing",
        False,
        _sample("zero_data: true"),
        ("input [ {", 'input [ { name: "x2" data_type: TYPE_FP32 dims: [ 3 ] }, {'),
    ),
    _warm(
        "warm_optional_input_missing",
        True,
        _sample("zero_data: true"),
        ("input [ {", 'input [ { name: "x2" data_type: TYPE_FP32 dims: [ 3 ] optional: true }, {'),
    ),
    _warm("warm_no_name", True, _sample("zero_data: true").replace('name: "w"', "")),
    _warm("warm_count", True, _sample("zero_data: true") + " count: 3"),
    _warm(
        "warm_reshaped",
        True,
        _sample("zero_data: true", dims="6"),
        ("dims: [ 3 ]", "dims: [ 6 ] reshape { shape: [ 2, 3 ] }"),
    ),
    _warm(
        "warm_reshaped_wrong",
        False,
        _sample("zero_data: true", dims="2, 3"),
        ("dims: [ 3 ]", "dims: [ 6 ] reshape { shape: [ 2, 3 ] }"),
    ),
    _warm("warm_unbatched", True, _sample("zero_data: true"), ("max_batch_size: 8", "")),
    _warm(
        "warm_open_input",
        True,
        _sample("zero_data: true", dims="7"),
        ("dims: [ 3 ]", "dims: [ -1 ]"),
    ),
    _warm(
        "warm_zero_dim", True, _sample("zero_data: true", dims="0"), ("dims: [ 3 ]", "dims: [ -1 ]")
    ),
]
