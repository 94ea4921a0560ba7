"""Dynamic batching, sequences, and the tensors that batching creates."""

from dataclasses import replace

from tests.serving.lint.corpus.case import Case, python

SINGLE = ("max_batch_size: 8", "max_batch_size: 0")
DELAYED = "default_timeout_microseconds: 9 timeout_action: DELAY"


def _dynamic(name: str, loads: bool, inside: str, *edits: tuple[str, str]) -> Case:
    return python(name, loads, *edits, add=f"dynamic_batching {{ {inside} }}")


def _sequence(name: str, loads: bool, inside: str, *edits: tuple[str, str], add: str = "") -> Case:
    return python(name, loads, *edits, add=f"sequence_batching {{ {inside} }}\n{add}")


def _control(kind: str, values: str = "int32_false_true: [ 0, 1 ]", name: str = "C") -> str:
    kind = f"kind: CONTROL_SEQUENCE_{kind} " if kind else ""
    return f'control_input {{ name: "{name}" control {{ {kind}{values} }} }}'


def _kept(name: str, loads: bool, inside: str, *edits: tuple[str, str]) -> Case:
    """A sequence whose state Triton keeps."""
    state = f'input_name: "s" output_name: "t" data_type: TYPE_INT32 {inside}'
    return _sequence(name, loads, f"state {{ {state} }}", *edits)


def _ragged(name: str, loads: bool, inside: str, kind: str = "batch_input") -> Case:
    return python(name, loads, add=f"{kind} {{ {inside} }}")


COUNT = 'kind: BATCH_ELEMENT_COUNT target_name: "n" data_type: TYPE_INT32'
SCATTER = "kind: BATCH_SCATTER_WITH_INPUT_SHAPE"

CASES = [
    _dynamic("dynamic", True, ""),
    _dynamic("dynamic_preferred", True, "preferred_batch_size: [ 4, 8 ]"),
    _dynamic("dynamic_preferred_zero", False, "preferred_batch_size: [ 0 ]"),
    _dynamic("dynamic_preferred_negative", False, "preferred_batch_size: [ -4 ]"),
    _dynamic("dynamic_preferred_above", False, "preferred_batch_size: [ 4, 16 ]"),
    _dynamic("dynamic_unbatched", True, "", SINGLE),
    _dynamic("dynamic_preferred_unbatched", False, "preferred_batch_size: [ 4 ]", SINGLE),
    _dynamic(
        "dynamic_preferred_no_max", False, "preferred_batch_size: [ 4 ]", ("max_batch_size: 8", "")
    ),
    _dynamic("dynamic_levels", True, "priority_levels: 2 default_priority_level: 1"),
    _dynamic("dynamic_levels_no_default", False, "priority_levels: 2"),
    _dynamic("dynamic_default_above", False, "priority_levels: 2 default_priority_level: 3"),
    _dynamic("dynamic_default_no_levels", True, "default_priority_level: 3"),
    _dynamic(
        "dynamic_policy_zero",
        False,
        "priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 0 value { } }",
    ),
    _dynamic(
        "dynamic_policy_above",
        False,
        "priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 3 value { } }",
    ),
    _dynamic("dynamic_policy_no_levels", True, "priority_queue_policy { key: 3 value { } }"),
    _dynamic(
        "dynamic_policy",
        True,
        "priority_levels: 2 default_priority_level: 2 priority_queue_policy { key: 2 value { } }",
    ),
    _dynamic("dynamic_ordered", True, "preserve_ordering: true"),
    _dynamic(
        "dynamic_ordered_levels",
        False,
        "preserve_ordering: true priority_levels: 2 default_priority_level: 1",
    ),
    _dynamic(
        "dynamic_ordered_level",
        True,
        "preserve_ordering: true priority_levels: 1 default_priority_level: 1",
    ),
    _dynamic(
        "dynamic_ordered_delay",
        False,
        f"preserve_ordering: true default_queue_policy {{ {DELAYED} }}",
    ),
    _dynamic(
        "dynamic_ordered_reject",
        True,
        "preserve_ordering: true "
        "default_queue_policy { default_timeout_microseconds: 9 timeout_action: REJECT }",
    ),
    _dynamic(
        "dynamic_ordered_delay_no_timeout",
        True,
        "preserve_ordering: true default_queue_policy { timeout_action: DELAY }",
    ),
    _dynamic(
        "dynamic_ordered_policy_delay",
        False,
        f"preserve_ordering: true priority_queue_policy {{ key: 1 value {{ {DELAYED} }} }}",
    ),
    _dynamic("dynamic_delay", True, f"default_queue_policy {{ {DELAYED} }}"),
    _dynamic("dynamic_and_sequence", False, "} sequence_batching {"),
    _sequence("sequence", True, ""),
    _sequence("sequence_controls", True, _control("START") + _control("READY", name="D")),
    _sequence("sequence_unbatched", True, _control("START"), SINGLE),
    _sequence("sequence_bool", True, _control("START", "bool_false_true: [ false, true ]")),
    _sequence("sequence_fp32", True, _control("END", "fp32_false_true: [ 0, 1 ]")),
    _sequence("sequence_default_kind", True, _control("")),
    _sequence("sequence_no_values", False, _control("START", "")),
    _sequence("sequence_one_value", False, _control("START", "int32_false_true: [ 1 ]")),
    _sequence("sequence_three_values", False, _control("READY", "fp32_false_true: [ 0, 1, 2 ]")),
    _sequence(
        "sequence_three_bools", False, _control("READY", "bool_false_true: [ false, true, true ]")
    ),
    _sequence(
        "sequence_two_types",
        False,
        _control("END", "int32_false_true: [ 0, 1 ] fp32_false_true: [ 0, 1 ]"),
    ),
    _sequence(
        "sequence_bool_and_int",
        False,
        _control("END", "int32_false_true: [ 0, 1 ] bool_false_true: [ false, true ]"),
    ),
    _sequence("sequence_no_name", False, _control("START", name="")),
    _sequence("sequence_no_name_no_control", False, "control_input { }"),
    _sequence("sequence_no_control", True, 'control_input { name: "C" }'),
    _sequence("sequence_control_twice", False, _control("START") + _control("START", name="D")),
    _sequence("sequence_tensor_twice", False, _control("START") + _control("END")),
    _sequence(
        "sequence_one_tensor_two_controls",
        True,
        'control_input { name: "C" control { kind: CONTROL_SEQUENCE_START int32_false_true: '
        "[ 0, 1 ] } control { kind: CONTROL_SEQUENCE_END int32_false_true: [ 0, 1 ] } }",
    ),
    _sequence("sequence_corrid", True, _control("CORRID", "data_type: TYPE_UINT64")),
    _sequence("sequence_corrid_string", True, _control("CORRID", "data_type: TYPE_STRING")),
    _sequence("sequence_corrid_no_type", False, _control("CORRID", "")),
    _sequence("sequence_corrid_fp32", False, _control("CORRID", "data_type: TYPE_FP32")),
    _sequence(
        "sequence_corrid_values",
        False,
        _control("CORRID", "data_type: TYPE_INT64 int32_false_true: [ 0, 1 ]"),
    ),
    _sequence(
        "sequence_corrid_twice",
        False,
        _control("CORRID", "data_type: TYPE_INT64")
        + _control("CORRID", "data_type: TYPE_INT64", name="D"),
    ),
    _sequence("sequence_control_is_input", True, _control("START", name="x")),
    _sequence(
        "sequence_start_with_type",
        True,
        _control("START", "int32_false_true: [ 0, 1 ] data_type: TYPE_FP32"),
    ),
    _sequence("sequence_oldest", True, "oldest { max_candidate_sequences: 4 }"),
    _sequence("sequence_oldest_preferred", True, "oldest { preferred_batch_size: [ 4 ] }"),
    _sequence("sequence_oldest_preferred_zero", False, "oldest { preferred_batch_size: [ 0 ] }"),
    _sequence("sequence_oldest_preferred_above", False, "oldest { preferred_batch_size: [ 9 ] }"),
    _sequence(
        "sequence_oldest_preferred_unbatched",
        False,
        "oldest { preferred_batch_size: [ 4 ] }",
        SINGLE,
    ),
    _sequence("sequence_oldest_unbatched", True, "oldest { }", SINGLE),
    _sequence(
        "sequence_oldest_negative_candidates", True, "oldest { max_candidate_sequences: -1 }"
    ),
    _sequence("sequence_direct", True, "direct { minimum_slot_utilization: 1 }"),
    _sequence("sequence_utilization_above", False, "direct { minimum_slot_utilization: 1.5 }"),
    _sequence("sequence_utilization_negative", False, "direct { minimum_slot_utilization: -0.1 }"),
    _sequence("sequence_direct_and_oldest", False, "direct { } oldest { }"),
    _sequence("sequence_cached", False, "", add="response_cache { enable: true }"),
    _sequence("sequence_not_cached", True, "", add="response_cache { enable: false }"),
    _sequence("sequence_decoupled", True, "", add="model_transaction_policy { decoupled: true }"),
    _sequence("sequence_iterative", True, "iterative_sequence: true"),
    _kept("state", True, "dims: [ 1 ]"),
    _kept("state_open", True, "dims: [ -1 ]"),
    _kept("state_no_dims", True, ""),
    _kept(
        "state_initial",
        True,
        'dims: [ 2 ] initial_state { name: "z" data_type: TYPE_INT32 dims: [ 2 ] zero_data: true }',
    ),
    _kept(
        "state_initial_no_name",
        False,
        "dims: [ 2 ] initial_state { data_type: TYPE_INT32 dims: [ 2 ] zero_data: true }",
    ),
    _kept(
        "state_initial_type",
        False,
        'dims: [ 2 ] initial_state { name: "z" data_type: TYPE_FP32 dims: [ 2 ] zero_data: true }',
    ),
    _kept(
        "state_initial_rank",
        False,
        'dims: [ 2 ] initial_state { name: "z" data_type: '
        "TYPE_INT32 dims: [ 2, 1 ] zero_data: true }",
    ),
    _kept(
        "state_initial_dims",
        False,
        'dims: [ 2 ] initial_state { name: "z" data_type: TYPE_INT32 dims: [ 3 ] zero_data: true }',
    ),
    _kept(
        "state_initial_open",
        False,
        'dims: [ -1 ] initial_state { name: "z" data_type: '
        "TYPE_INT32 dims: [ -1 ] zero_data: true }",
    ),
    _kept(
        "state_initial_of_open",
        True,
        'dims: [ -1 ] initial_state { name: "z" data_type: '
        "TYPE_INT32 dims: [ 4 ] zero_data: true }",
    ),
    _kept(
        "state_initial_no_data",
        False,
        'dims: [ 2 ] initial_state { name: "z" data_type: TYPE_INT32 dims: [ 2 ] }',
    ),
    _kept(
        "state_initial_no_file",
        False,
        'dims: [ 2 ] initial_state { name: "z" data_type: '
        'TYPE_INT32 dims: [ 2 ] data_file: "none" }',
    ),
    _kept(
        "state_initial_two",
        False,
        'dims: [ 2 ] initial_state [ { name: "z" data_type: '
        'TYPE_INT32 dims: [ 2 ] zero_data: true }, { name: "a" data_type: TYPE_INT32 '
        "dims: [ 2 ] zero_data: true } ]",
    ),
    python(
        "state_initial_file_short",
        False,
        add='sequence_batching { state { input_name: "s" '
        'output_name: "t" data_type: TYPE_INT32 dims: [ 2 ] initial_state { name: "z" '
        'data_type: TYPE_INT32 dims: [ 2 ] data_file: "z" } } }',
        **{"initial_state/z": b"\0\0\0\0"},
    ),
    python(
        "state_initial_file",
        True,
        add='sequence_batching { state { input_name: "s" '
        'output_name: "t" data_type: TYPE_INT32 dims: [ 2 ] initial_state { name: "z" '
        'data_type: TYPE_INT32 dims: [ 2 ] data_file: "z" } } }',
        **{"initial_state/z": b"\0" * 8},
    ),
    _kept("state_growable", True, "dims: [ 1 ] use_growable_memory: true"),
    _kept(
        "state_growable_on_cpu",
        True,
        "dims: [ 1 ] use_growable_memory: true use_same_buffer_for_input_output: true",
    ),
    _kept(
        "state_twice",
        True,
        'dims: [ 1 ] } state { input_name: "s" output_name: "t" data_type: TYPE_INT32 dims: [ 1 ]',
    ),
    _kept(
        "state_initial_twice",
        False,
        'dims: [ 1 ] initial_state { name: "z" data_type: '
        'TYPE_INT32 dims: [ 1 ] zero_data: true } } state { input_name: "s" output_name: "u" '
        'data_type: TYPE_INT32 dims: [ 1 ] initial_state { name: "z" data_type: TYPE_INT32 '
        "dims: [ 1 ] zero_data: true }",
    ),
    _sequence("state_no_names", True, "state { data_type: TYPE_INT32 dims: [ 1 ] }"),
    _sequence("state_no_type", True, 'state { input_name: "s" output_name: "t" dims: [ 1 ] }'),
    _ragged("batch_input", True, COUNT + ' source_input: "x"'),
    _ragged("batch_input_no_source", False, COUNT),
    _ragged("batch_input_two_sources", False, COUNT + ' source_input: [ "x", "x" ]'),
    _ragged("batch_input_unknown_source", False, COUNT + ' source_input: "none"'),
    _ragged(
        "batch_input_no_type", False, 'kind: BATCH_ELEMENT_COUNT target_name: "n" source_input: "x"'
    ),
    _ragged("batch_input_int64", False, COUNT.replace("INT32", "INT64") + ' source_input: "x"'),
    _ragged("batch_input_fp32", True, COUNT.replace("INT32", "FP32") + ' source_input: "x"'),
    _ragged(
        "batch_input_no_target",
        True,
        'kind: BATCH_ITEM_SHAPE data_type: TYPE_INT32 source_input: "x"',
    ),
    _ragged("batch_input_output_as_source", False, COUNT + ' source_input: "y"'),
    _ragged("batch_output", True, SCATTER + ' target_name: "y" source_input: "x"', "batch_output"),
    _ragged("batch_output_no_source", False, SCATTER + ' target_name: "y"', "batch_output"),
    _ragged(
        "batch_output_two_sources",
        False,
        SCATTER + ' target_name: "y" source_input: [ "x", "x" ]',
        "batch_output",
    ),
    _ragged(
        "batch_output_unknown_source",
        False,
        SCATTER + ' target_name: "y" source_input: "none"',
        "batch_output",
    ),
    _ragged(
        "batch_output_unknown_target",
        False,
        SCATTER + ' target_name: "none" source_input: "x"',
        "batch_output",
    ),
    _ragged(
        "batch_output_target_twice",
        False,
        SCATTER + ' target_name: [ "y", "y" ] source_input: "x"',
        "batch_output",
    ),
    replace(
        _ragged("batch_output_no_target", False, SCATTER + ' source_input: "x"', "batch_output"),
        hangs=True,
    ),
    python(
        "cache_decoupled",
        False,
        add="response_cache { enable: true } model_transaction_policy { decoupled: true }",
    ),
    python("cache", True, add="response_cache { enable: true }"),
]
# Triton 2.51 crashes on these: a scheduler is destroyed before its threads were started.
CASES = [
    replace(case, hangs=case.hangs or (case.name.startswith("state_initial") and not case.loads))
    for case in CASES
]
