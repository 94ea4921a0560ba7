"""Names, types, dims, reshape, batching of inputs: what one tensor may declare."""

from tests.serving.lint.corpus.case import STUB, Case, ensemble, python

DIMS = "dims: [ 3 ]"
COMPLETES = """
class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "x", "data_type": "TYPE_FP32", "dims": [3]})
        config.add_output({"name": "y", "data_type": "TYPE_FP32", "dims": [3]})
        config.set_max_batch_size(8)
        return config

    def execute(self, requests):
        return []
"""


def _dims(name: str, loads: bool, dims: str, **more) -> Case:
    return python(name, loads, (DIMS, dims), **more)


def _single(name: str, loads: bool, dims: str) -> Case:
    return python(name, loads, ("max_batch_size: 8", "max_batch_size: 0"), (DIMS, dims))


def _reshape(name: str, loads: bool, dims: str, shape: str) -> Case:
    """On the output of an ensemble: no stub is started."""
    new = f"dims: [ {dims} ] reshape {{ shape: [ {shape} ] }}"
    return _dims(name, loads, new)


CASES = [
    python("plain", True),
    python("no_name_tensor", False, ('name: "x"', 'name: ""')),
    python("tensor_without_name_field", False, ('name: "x" ', "")),
    python("no_type", False, ("data_type: TYPE_FP32 ", "")),
    python("output_no_type", False, ('name: "y" data_type: TYPE_FP32', 'name: "y"')),
    python("type_invalid", False, ("TYPE_FP32", "TYPE_INVALID")),
    python("type_bf16", True, ("TYPE_FP32", "TYPE_BF16")),
    python("no_dims", False, (" dims: [ 3 ]", "")),
    _dims("dims_empty", False, "dims: [ ]"),
    _dims("dims_zero", False, "dims: [ 0 ]"),
    _dims("dims_minus_two", False, "dims: [ -2 ]"),
    _dims("dims_open", True, "dims: [ -1, 3, -1 ]"),
    python(
        "output_dims_zero",
        False,
        ('"y" data_type: TYPE_FP32 dims: [ 3 ]', '"y" data_type: TYPE_FP32 dims: [ 0 ]'),
    ),
    python("no_input", True, ('input [ { name: "x" data_type: TYPE_FP32 dims: [ 3 ] } ]', "")),
    python("no_output", True, ('output [ { name: "y" data_type: TYPE_FP32 dims: [ 3 ] } ]', "")),
    python("tensor_twice", True, add='input { name: "x" data_type: TYPE_FP32 dims: [ 3 ] }'),
    python("tensor_twice_unlike", True, add='input { name: "x" data_type: TYPE_INT8 dims: [ 1 ] }'),
    python("output_twice", True, add='output { name: "y" data_type: TYPE_FP32 dims: [ 3 ] }'),
    python("input_and_output_of_one_name", True, ('name: "y"', 'name: "x"')),
    _reshape("reshape_same_count", True, "6", "2, 3"),
    _reshape("reshape_other_count", False, "6", "2, 4"),
    _reshape("reshape_zero", False, "6", "0"),
    _reshape("reshape_minus_two", False, "6", "-2"),
    _reshape("reshape_empty_of_one", True, "1", ""),
    _reshape("reshape_empty_of_ones", True, "1, 1", ""),
    _reshape("reshape_empty_of_three", False, "3", ""),
    _reshape("reshape_empty_of_open", False, "-1", ""),
    _reshape("reshape_open", True, "-1, 6", "-1, 2, 3"),
    _reshape("reshape_open_parts_differ", False, "2, -1, 6", "6, -1, 2"),
    _reshape("reshape_open_parts_agree", True, "2, 4, -1, 6", "8, -1, 1, 6"),
    _reshape("reshape_open_to_fixed", False, "-1", "3"),
    _reshape("reshape_fixed_to_open", False, "3", "-1"),
    _reshape("reshape_two_open_to_one", False, "-1, -1", "-1"),
    _reshape("reshape_one_open_to_two", False, "-1", "-1, -1"),
    _single("reshape_empty_unbatched", False, "dims: [ 1 ] reshape { shape: [ ] }"),
    _single("reshape_unbatched", True, "dims: [ 4 ] reshape { shape: [ 2, 2 ] }"),
    _single("reshape_message_only_unbatched", False, "dims: [ 1 ] reshape { }"),
    python(
        "output_reshape_count",
        False,
        (
            '"y" data_type: TYPE_FP32 dims: [ 3 ]',
            '"y" data_type: TYPE_FP32 dims: [ 4 ] reshape { shape: [ 2, 3 ] }',
        ),
    ),
    python(
        "output_reshape_open",
        False,
        (
            '"y" data_type: TYPE_FP32 dims: [ 3 ]',
            '"y" data_type: TYPE_FP32 dims: [ -1, 4 ] reshape { shape: [ -1, 3 ] }',
        ),
    ),
    _dims("format_nchw", True, "dims: [ 3, 4, 4 ] format: FORMAT_NCHW"),
    _dims("format_nchw_two_dims", False, "dims: [ 4, 4 ] format: FORMAT_NCHW"),
    _dims("format_nhwc_four_dims", False, "dims: [ 1, 4, 4, 3 ] format: FORMAT_NHWC"),
    _dims("format_none", True, "dims: [ 4, 4 ] format: FORMAT_NONE"),
    _dims("shape_tensor", False, "dims: [ 3 ] is_shape_tensor: true"),
    python(
        "output_shape_tensor",
        False,
        (
            '"y" data_type: TYPE_FP32 dims: [ 3 ]',
            '"y" data_type: TYPE_FP32 dims: [ 3 ] is_shape_tensor: true',
        ),
    ),
    _dims("non_linear", False, "dims: [ 3, 4, 4 ] is_non_linear_format_io: true"),
    _dims("optional", True, "dims: [ 3 ] optional: true"),
    _dims("ragged", True, "dims: [ -1 ] allow_ragged_batch: true"),
    _single("ragged_unbatched", True, "dims: [ -1 ] allow_ragged_batch: true"),
    python(
        "completed_by_model",
        True,
        (" data_type: TYPE_FP32", ""),
        (" dims: [ 3 ]", ""),
        stub=COMPLETES,
    ),
    Case(
        "completed_from_nothing",
        True,
        {"config.pbtxt": 'backend: "python"', "1/model.py": COMPLETES},
    ),
    Case("no_config_completed", True, {"1/model.py": COMPLETES}),
    Case("no_config_not_completed", True, {"1/model.py": STUB}),
    Case("empty_config", True, {"config.pbtxt": "", "1/model.py": STUB}),
    python(
        "labels",
        True,
        (
            '"y" data_type: TYPE_FP32 dims: [ 3 ]',
            '"y" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "l.txt"',
        ),
        **{"l.txt": "a\nb\n"},
    ),
    python(
        "labels_missing",
        False,
        (
            '"y" data_type: TYPE_FP32 dims: [ 3 ]',
            '"y" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "l.txt"',
        ),
    ),
    python(
        "labels_twice",
        False,
        (
            '"y" data_type: TYPE_FP32 dims: [ 3 ]',
            '"y" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "l.txt"',
        ),
        add='output { name: "y" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "l.txt" }',
        **{"l.txt": "a\nb\n"},
    ),
    ensemble("ensemble_dims_zero", False, (DIMS, "dims: [ 0 ]")),
    ensemble("ensemble_no_type", False, ("data_type: TYPE_FP32 ", "")),
    ensemble(
        "ensemble_labels_missing",
        False,
        ("dims: [ 3 ] } ]\nens", 'dims: [ 3 ] label_filename: "l" } ]\nens'),
    ),
    python("batch_negative", False, ("max_batch_size: 8", "max_batch_size: -1")),
    python("batch_absent", True, ("max_batch_size: 8", "")),
    ensemble("ensemble_batch_negative", False, ("max_batch_size: 8", "max_batch_size: -1")),
]
