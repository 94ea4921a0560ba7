"""The V2 body: every dtype survives a round trip, and any input is at worst an InvalidRequest."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.api.v2.request import MAX_KNOWN, parse
from gateway.api.v2.response import json_data
from gateway.errors import InvalidRequest
from gateway.models.catalogue import Model, TensorMeta
from gateway.models.tensors import pack, unpack
from modelspec.dtypes import NUMERIC_TYPES

MODEL = Model(
    "m",
    ("1",),
    8,
    {"x": TensorMeta("x", "FP32", (-1,)), "s": TensorMeta("s", "BYTES", (1,), optional=True)},
    {"y": TensorMeta("y", "FP32", (-1,))},
    False,
    None,
    None,
)
GOOD = {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [[1, 2], [3, 4.5]]}


def _parse(document, tail=b"", header_length=None):
    return parse(MODEL, "", json.dumps(document).encode() + tail, header_length)


def test_nested_and_flat_data_are_the_same():
    nested = _parse({"inputs": [GOOD]}).message()
    flat = _parse({"inputs": [{**GOOD, "data": [1, 2, 3, 4.5]}]}).message()
    assert nested == flat
    assert np.frombuffer(nested.raw_input_contents[0], np.float32).tolist() == [1, 2, 3, 4.5]


# What is sent twice, and then with other text for its elements: mostly known by then.
FLAT = {**GOOD, "data": [1, 2, 3, 4.5]}
TEXTS = {
    "known": json.dumps({"inputs": [FLAT]}),
    "known without spaces": json.dumps({"inputs": [FLAT]}, separators=(",", ":")),
    "with parameters": json.dumps({"inputs": [FLAT], "parameters": {"timeout": 2_000_000}}),
    "with outputs": json.dumps({"inputs": [FLAT], "outputs": [{"name": "y"}]}),
    "with an id": json.dumps({"id": "7", "inputs": [FLAT]}),
    "nested": json.dumps({"inputs": [GOOD]}),
    "with its data last": json.dumps({"inputs": [{**FLAT, "parameters": {}}]}),
    "with data elsewhere": json.dumps({"parameters": {"data": [1, 2, 3, 4.5]}, "inputs": [FLAT]}),
    "with data in a string": json.dumps({"inputs": [FLAT], "parameters": {"k": '"data": [1]'}}),
    "with an escaped key": json.dumps({"inputs": [FLAT]}).replace('"data"', '"d\\u0061ta"'),
    "with two tensors": json.dumps(
        {
            "inputs": [
                FLAT,
                {"name": "s", "shape": [2, 1], "datatype": "BYTES", "data": ["a", "b"]},
            ]
        }
    ),
}
KNOWN = {
    "known",
    "known without spaces",
    "with parameters",
    "with outputs",
    "with its data last",
}
ELEMENTS = [
    "[1, 2, 3, 4.5]",
    "[5, 6, 7.25, -8]",
    "[1, 2, 3]",
    "[1, 2, 3, 4, 5]",
    "[[1, 2], [3, 4]]",
    "[1, 2, 3, NaN]",
    "[1, 2, 3, 1e60]",
    "[1, 2, 3, true]",
    '[1, 2, 3, "]"]',
    '[1, 2, 3, {"a": 4}]',
    "[1, 2, 3, 4.5",
    "[]",
    "null",
    '[1, 2, 3, 4.5], "data": [1, 2, 3, 4.5]',
]


def _outcome(model, text):
    """The message to Triton, or the error's."""
    try:
        return parse(model, "", text.encode(), None).message()
    except InvalidRequest as error:
        return error.message


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_a_request_that_is_known_but_for_its_elements_is_as_one_that_is_not(name):
    known = replace(MODEL)
    text = TEXTS[name]
    for _ in range(2):
        _outcome(known, text)
    assert bool(known.known_requests) == (name in KNOWN)
    for elements in ELEMENTS:
        for cut in ("[1, 2, 3, 4.5]", "[1,2,3,4.5]", "[[1, 2], [3, 4.5]]"):
            changed = text.replace(cut, elements)
            assert _outcome(known, changed) == _outcome(replace(MODEL), changed)


def test_what_becomes_of_a_request_is_not_known_of_the_next_one():
    model, text = replace(MODEL), TEXTS["known"].encode()
    parse(model, "", text, None).tensors = []
    request = parse(model, "", text, None)
    assert len(request.tensors[0].raw) == 16
    assert (request.size, request.version) == (16, "")
    assert parse(model, "1", text, None).version == "1"
    for number in range(200):
        parse(model, "", text.replace(b'"inputs"', b'"more": %d, "inputs"' % number), None)
    assert 0 < len(model.known_requests) <= MAX_KNOWN


@pytest.mark.parametrize("dtype", sorted(set(NUMERIC_TYPES) - {"FP16"}))
def test_every_dtype_survives_a_round_trip_through_json(dtype):
    numpy_dtype = np.dtype(NUMERIC_TYPES[dtype])
    if dtype == "BOOL":
        values = [True, False]
    elif numpy_dtype.kind == "f":
        values = [0.0, -1.5, float(np.finfo(numpy_dtype).max)]
    else:
        values = [int(np.iinfo(numpy_dtype).min), 0, int(np.iinfo(numpy_dtype).max)]
    raw = pack("x", dtype, values)
    assert json_data("y", dtype, [len(values)], raw).tolist() == values


def test_strings_survive_a_round_trip():
    texts = ["", "plain", "中文 and ☃", "nul \x00 inside"]
    raw = pack("x", "BYTES", texts)
    assert json_data("y", "BYTES", [4], raw) == texts
    assert unpack("BYTES", [2, 2], raw).shape == (2, 2)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("INT8", 128),
        ("INT8", -129),
        ("UINT8", -1),
        ("UINT64", 2**64),
        ("INT64", 2**63),
        ("INT32", 1.0),
        ("INT32", "1"),
        ("INT32", True),
        ("BOOL", 1),
        ("FP32", 1e39),
        ("FP32", None),
        ("FP32", 10**400),
        ("BYTES", 1),
        ("FP16", 1.0),
        ("BF16", 1.0),
        ("FLOAT32", 1.0),
    ],
)
def test_a_value_that_does_not_fit_is_refused_not_wrapped(dtype, value):
    with pytest.raises(InvalidRequest):
        pack("x", dtype, [value])


def test_reserved_parameters_do_not_reach_triton():
    parameters = {
        "priority": 1,
        "timeout": 2_000_000,
        "triton_enable_empty_final_response": True,
        "mine": "x",
        "n": 3,
        "f": 0.5,
    }
    request = _parse({"inputs": [GOOD], "parameters": parameters})
    assert set(request.message().parameters) == {"mine", "n", "f"}
    assert request.timeout_s == 2.0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4)
    ),
    max_leaves=20,
)
keys = st.sampled_from(["name", "shape", "datatype", "data", "parameters"])
near_misses = st.dictionaries(keys, json_values).map(lambda changes: {**GOOD, **changes})


@settings(deadline=None)
@given(st.one_of(json_values, st.fixed_dictionaries({"inputs": st.lists(near_misses)})))
def test_any_json_is_parsed_or_invalid(document):
    try:
        request = _parse(document)
    except InvalidRequest as error:
        assert error.message
    else:
        assert request.message().inputs[0].name == "x"


@given(st.binary(max_size=200), st.none() | st.binary(max_size=6) | st.integers(0, 99))
def test_any_bytes_are_invalid(body, header_length):
    length = str(header_length).encode() if isinstance(header_length, int) else header_length
    with pytest.raises(InvalidRequest):
        parse(MODEL, "", body, length)
