"""Parsing a request: always with the same result as protobuf."""

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor, triton_to_np_dtype

from gateway.api.grpc.wire import RequestParts
from gateway.errors import InvalidRequest

Request = service_pb2.ModelInferRequest


def sizes(name: str) -> tuple[int, int]:
    return 4, 2


def _request(*raws: bytes) -> Request:
    request = Request(model_name="m", id="mine", raw_input_contents=raws)
    for index, raw in enumerate(raws):
        request.inputs.add(name=f"x{index}", datatype="UINT8", shape=[len(raw)])
    request.parameters["priority"].int64_param = 1
    return request


@pytest.mark.parametrize(
    "raws", [(), (b"",), (b"abc", b""), (bytes(127), bytes(128), bytes(70_000))]
)
def test_tensors_are_not_copied(raws):
    data = _request(*raws).SerializeToString()
    parts = RequestParts(data, sizes)
    assert [bytes(raw) for raw in parts.raws] == list(raws)
    assert all(raw.obj is data for raw in parts.raws)
    assert not parts.header.raw_input_contents
    assert parts.message() is data


def test_a_changed_header_is_serialised_again():
    parts = RequestParts(_request(b"abc", b"d").SerializeToString(), sizes)
    del parts.header.parameters["priority"]
    expected = _request(b"abc", b"d")
    del expected.parameters["priority"]
    assert Request.FromString(parts.message()) == expected


def test_unknown_fields_are_refused_or_dropped():
    data = _request(b"abc").SerializeToString()
    for unknown in (b"\x42\x01a", b"\x08\x01", b"\x3b\x3c", b"\xba\x00\x01a"):
        with pytest.raises(InvalidRequest):
            RequestParts(data + unknown, sizes)
    request = Request(model_name="m")
    request.inputs.add(name="x").MergeFromString(b"\x7a\x03new")  # field 15
    assert b"new" in request.SerializeToString()
    assert b"new" not in RequestParts(request.SerializeToString(), sizes).message()


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_truncated_message_is_refused(cut):
    data = _request(b"abcdefgh").SerializeToString()
    try:
        Request.FromString(data[:-cut])
    except DecodeError:
        with pytest.raises(InvalidRequest):
            RequestParts(data[:-cut], sizes)
    else:
        assert len(RequestParts(data[:-cut], sizes).raws) == 0  # cut between two fields


FIELD = st.tuples(
    st.sampled_from(b"\x0a\x12\x1a\x22\x2a\x32\x3a\x42\x08\x00"),
    st.binary(min_size=1, max_size=6),
    st.binary(max_size=9),
).map(lambda parts: bytes([parts[0]]) + parts[1] + parts[2])
WELL_FORMED = st.tuples(st.sampled_from(b"\x0a\x12\x1a\x3a"), st.text(max_size=9)).map(
    lambda parts: bytes([parts[0], len(parts[1].encode())]) + parts[1].encode()
)


@given(st.lists(FIELD | WELL_FORMED, max_size=6).map(b"".join) | st.binary(max_size=40))
@example(b"\x3a\x80\x80\x80\x80\x00")  # a length encoded in more bytes than needed
@example(b"\x3a\xff\xff\xff\xff\x7f")
def test_never_otherwise_than_protobuf(data):
    """Triton reads the same bytes: a tensor must not be hidden from the checks."""
    try:
        parts = RequestParts(data, sizes)
    except InvalidRequest:
        return
    expected = Request.FromString(data)
    assert [bytes(raw) for raw in parts.raws] == list(expected.raw_input_contents)
    actual = Request.FromString(parts.message())
    expected.DiscardUnknownFields()
    assert actual == expected


@pytest.mark.parametrize("prompt", [b"hello", b"x" * 10_000, b""], ids=["small", "large", "empty"])
def test_a_text_is_the_same_sent_raw_and_as_protobuf_values(prompt):
    """What a language model's request costs does not depend on how it was sent."""
    tensors = {
        "text_input": ("BYTES", [prompt]),
        "stream": ("BOOL", [True]),
        "sampling_parameters": ("BYTES", [b'{"max_tokens": 7, "n": 2}']),
        "prompt_token_ids": ("INT64", [5, -1, 2**40]),
    }
    typed = Request(model_name="m")
    raw = Request(model_name="m")
    fields = {"BYTES": "bytes_contents", "BOOL": "bool_contents", "INT64": "int64_contents"}
    for name, (dtype, values) in tensors.items():
        for request in (typed, raw):
            request.inputs.add(name=name, datatype=dtype, shape=[len(values)])
        getattr(typed.inputs[-1].contents, fields[dtype]).extend(values)
        array = np.array(values, dtype=object if dtype == "BYTES" else triton_to_np_dtype(dtype))
        packed = serialize_byte_tensor(array).item() if dtype == "BYTES" else array.tobytes()
        raw.raw_input_contents.append(packed)
    ours, theirs = (
        [bytes(data) for data in RequestParts(message.SerializeToString(), sizes).text_elements()]
        for message in (typed, raw)
    )
    assert ours == theirs
