"""Equal requests have equal keys, and no two others do."""

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from gateway.response_cache.key import CacheScope, combined, elements_of, key_of

SCOPE = CacheScope("acme", "m", "1", "abc")


def _message(**changes) -> service_pb2.ModelInferRequest:
    message = service_pb2.ModelInferRequest(model_name="m")
    message.inputs.add(name="a", datatype="FP32", shape=[2])
    message.inputs.add(name="b", datatype="BYTES", shape=[1])
    message.raw_input_contents.extend([np.float32([1, 2]).tobytes(), b"\x01\x00\x00\x00x"])
    message.outputs.add(name="y")
    message.outputs.add(name="z")
    message.parameters["top"].int64_param = 1
    for change in changes.values():
        change(message)
    return message


def _key(message: service_pb2.ModelInferRequest, scope: CacheScope = SCOPE) -> bytes:
    return key_of(scope, message, elements_of(message))


def _swap_inputs(message: service_pb2.ModelInferRequest) -> None:
    inputs, raws = list(message.inputs), list(message.raw_input_contents)
    del message.inputs[:], message.raw_input_contents[:]
    message.inputs.extend(reversed(inputs))
    message.raw_input_contents.extend(reversed(raws))


def _move_a_byte(message: service_pb2.ModelInferRequest) -> None:
    """From the end of one input to the start of the next: the bytes together stay the same."""
    first, second = message.raw_input_contents
    message.raw_input_contents[0], message.raw_input_contents[1] = (
        first[:-1],
        first[-1:] + second,
    )


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda message: setattr(message, "id", "7"), id="id"),
        pytest.param(_swap_inputs, id="order_of_inputs"),
    ],
)
def test_what_decides_nothing_is_not_in_the_key(change):
    assert _key(_message(change=change)) == _key(_message())


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda m: m.inputs[0].shape.__setitem__(slice(None), [1, 2]), id="shape"),
        pytest.param(lambda m: setattr(m.inputs[0], "datatype", "INT32"), id="dtype"),
        pytest.param(lambda m: setattr(m.inputs[0], "name", "c"), id="name"),
        pytest.param(lambda m: m.raw_input_contents.__setitem__(0, bytes(8)), id="elements"),
        pytest.param(_move_a_byte, id="border"),
        pytest.param(lambda m: m.outputs.pop(), id="outputs"),
        pytest.param(lambda m: m.outputs.reverse(), id="order_of_outputs"),
        pytest.param(
            lambda m: setattr(m.outputs[0].parameters["classification"], "int64_param", 3),
            id="classification",
        ),
        pytest.param(lambda m: setattr(m.parameters["top"], "int64_param", 2), id="parameter"),
        pytest.param(lambda m: setattr(m.parameters["top"], "string_param", "1"), id="type"),
        pytest.param(lambda m: setattr(m.parameters["top"], "bool_param", True), id="bool"),
        pytest.param(lambda m: m.parameters.pop("top"), id="no_parameter"),
    ],
)
def test_what_may_decide_is_in_the_key(change):
    assert _key(_message(change=change)) != _key(_message())


def test_numbers_that_json_cannot_tell_apart_are_told_apart():
    values = (float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 0.1)
    keys = {
        _key(_message(change=lambda m, v=value: setattr(m.parameters["t"], "double_param", v)))
        for value in values
    }
    assert len(keys) == len(values)


@pytest.mark.parametrize("field", CacheScope._fields)
def test_the_scope_is_in_the_key(field):
    assert _key(_message(), SCOPE._replace(**{field: "other"})) != _key(_message())


def test_the_parts_of_a_scope_cannot_be_moved():
    assert _key(_message(), CacheScope("ab", "c", "", "")) != _key(
        _message(), CacheScope("a", "bc", "", "")
    )


def test_typed_elements_are_not_raw_ones():
    message = service_pb2.ModelInferRequest()
    message.inputs.add(name="a", datatype="FP32", shape=[1]).contents.fp32_contents.append(1)
    typed = elements_of(message)
    assert typed[0][0] is False
    assert key_of(SCOPE, message, typed) != key_of(SCOPE, message, [(True, typed[0][1])])


def test_rows_in_another_place_are_another_request():
    keys = [b"x" * 32, b"y" * 32]
    assert combined(keys, [(0, 1), (2,)]) != combined(keys, [(0, 2), (1,)])
    assert combined(keys, [(0,), (1,)]) != combined(keys[::-1], [(0,), (1,)])
