"""Work and memory grow with a message's size, not with the number of its fields."""

import time
import tracemalloc

import psutil
import pytest
from tritonclient.grpc import service_pb2

from gateway.api.grpc.request import check_request
from gateway.api.grpc.wire import RequestParts, varint
from gateway.errors import GatewayError, InvalidRequest, NotFound
from gateway.models.catalogue import Model, TensorMeta

INPUTS = {
    "x": TensorMeta("x", "FP32", (-1,)),
    "long": TensorMeta("long", "INT64", (-1,), optional=True),
    "small": TensorMeta("small", "INT8", (-1,), optional=True),
    "flag": TensorMeta("flag", "BOOL", (-1,), optional=True),
    "text": TensorMeta("text", "BYTES", (-1,), optional=True),
    **{f"t{n}": TensorMeta(f"t{n}", "BYTES", (-1,), optional=True) for n in range(38)},
    **{f"s{n}": TensorMeta(f"s{n}", "INT8", (-1,), optional=True) for n in range(38)},
}
MODEL = Model("m", ("1",), 0, INPUTS, {"y": TensorMeta("y", "FP32", (-1,))}, False, None, None)
WIDE = Model(
    "m", ("1",), 0, {f"x{n}": TensorMeta(f"x{n}", "UINT8", (1,)) for n in range(700)}, {}, False,
    None, None,
)  # fmt: skip
NAME = b"\x0a\x01m"
SMALL, LARGE = 1 << 20, 10 << 20


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + varint(len(content)) + content


def tensor(name: str, dtype: str, count: int, contents: bytes) -> bytes:
    shape = field(3, varint(count))
    inside = field(1, name.encode()) + field(2, dtype.encode()) + shape + field(5, contents)
    return NAME + field(5, inside)


def several(names, dtype: str, size: int, element: bytes, number: int = 0, shape: int = 0) -> bytes:
    """A tensor for each of the names, of all ``size`` bytes; a number's elements are packed."""
    names = list(names)
    count = size // len(element) // len(names)
    contents = element * count
    if number:
        contents = field(number, contents)
    return b"".join(tensor(name, dtype, shape or count, contents) for name in names)


def raw_strings(size: int) -> bytes:
    """Each input has as many empty strings as one may have in raw_input_contents."""
    inputs = [field(5, field(1, b"x") + field(2, b"FP32") + field(3, b"\1"))]
    raws = [field(7, bytes(4))]
    count = size // 4 // 38
    for n in range(38):
        shape = field(3, varint(count))
        inputs.append(field(5, field(1, f"t{n}".encode()) + field(2, b"BYTES") + shape))
        raws.append(field(7, bytes(4 * count)))
    return NAME + b"".join(inputs + raws)


STRING = b"\x42\0"
# Messages of about a given size that repeat something, by what is repeated.
ABUSE = {
    "raw_input_contents": lambda size: NAME + b"\x3a\0" * (size // 2),
    "inputs": lambda size: NAME + b"\x2a\0" * (size // 2),
    "named inputs": lambda size: NAME + field(5, field(1, b"x")) * (size // 5),
    "outputs": lambda size: NAME + b"\x32\0" * (size // 2),
    "parameters": lambda size: NAME + b"\x22\0" * (size // 2),
    "names": lambda size: NAME * (size // 3),
    "a long name": lambda size: field(1, b"m" * size),
    "a long id": lambda size: NAME + field(3, b"i" * size),
    "unknown": lambda size: NAME + b"\x42\0" * (size // 2),
    "groups": lambda size: NAME + b"\x43\x44" * (size // 2),
    "a parameter's fields": lambda size: NAME + field(4, b"\x0a\0" * (size // 2)),
    "a parameter's unknown fields": lambda size: NAME + field(4, b"\x20\0" * (size // 2)),
    "a parameter's value": lambda size: (
        NAME + field(4, field(1, b"k") + field(2, b"\x08\1" * (size // 2)))
    ),
    "a long parameter": lambda size: (
        NAME + field(4, field(1, b"k") + field(2, field(3, b"v" * size)))
    ),
    "an input's parameters": lambda size: NAME + field(5, field(4, b"") * (size // 2)),
    "an input's shape": lambda size: NAME + field(5, field(1, b"x") + field(3, b"\1" * size)),
    "a shape not packed": lambda size: NAME + field(5, field(1, b"x") + b"\x18\1" * (size // 2)),
    "an input's unknown fields": lambda size: NAME + field(5, b"\x7a\0" * (size // 2)),
    "an input's contents": lambda size: NAME + field(5, field(5, b"") * (size // 2)),
    "an output's parameters": lambda size: NAME + field(6, field(2, b"") * (size // 2)),
    "empty strings": lambda size: tensor("text", "BYTES", size // 2, b"\x42\0" * (size // 2)),
    "small numbers": lambda size: tensor("long", "INT64", size, field(3, b"\1" * size)),
    "too few numbers": lambda size: tensor("long", "INT64", 5, field(3, b"\1" * size)),
    "narrow numbers": lambda size: tensor("small", "INT8", size, field(2, b"\1" * size)),
    "flags": lambda size: tensor("flag", "BOOL", size, field(1, b"\1" * size)),
    "pieces": lambda size: tensor("long", "INT64", size // 3, field(3, b"\1") * (size // 3)),
    "numbers not packed": lambda size: tensor("long", "INT64", size // 2, b"\x18\1" * (size // 2)),
    "wrong contents": lambda size: tensor("x", "FP32", size // 8, field(7, bytes(size))),
    "endless numbers": lambda size: tensor("long", "INT64", 1, field(3, b"\x80" * size)),
    "equal inputs": lambda size: several(["text"] * 38, "BYTES", size, STRING),
    "unknown inputs": lambda size: several([f"u{n}" for n in range(38)], "BYTES", size, STRING),
    "too many inputs": lambda size: several([f"u{n}" for n in range(90)], "BYTES", size, STRING),
    "inputs of strings": lambda size: several(
        ["x", *(f"t{n}" for n in range(38))], "BYTES", size, STRING
    ),
    "inputs of more strings than they say": lambda size: several(
        ["x", *(f"t{n}" for n in range(38))], "BYTES", size, STRING, shape=800
    ),
    "inputs of narrow numbers": lambda size: several(
        ["x", *(f"s{n}" for n in range(38))], "INT8", size, b"\1", number=2
    ),
    "inputs of raw strings": raw_strings,
    "values": lambda size: tensor("x", "FP32", size // 4, field(6, bytes(size // 4 * 4))),
}


def sizes(name: str) -> tuple[int, int]:
    if name != "m":
        raise NotFound("there is no such model")
    return len(INPUTS), 1


def read(data: bytes) -> float:
    """Seconds of CPU time to read the message; it may be refused."""
    started = time.thread_time()
    try:
        parts = RequestParts(data, sizes)
        check_request(parts, MODEL)
        parts.message()
    except GatewayError as error:
        assert error.code in ("invalid_request", "not_found")
    return time.thread_time() - started


@pytest.mark.parametrize("abuse", ABUSE)
def test_ten_times_as_much_takes_at_most_twelve_times_as_long(abuse):
    small, large = ABUSE[abuse](SMALL), ABUSE[abuse](LARGE)
    read(small)
    once = min(read(small) for _ in range(3))
    ten_times = min(read(large) for _ in range(3))
    assert ten_times <= max(12 * once, 0.02)
    assert ten_times < 0.1


@pytest.mark.parametrize("abuse", ABUSE)
def test_no_message_costs_ten_times_its_size(abuse):
    """Python's and numpy's objects; what protobuf allocates in C shows in the resident size."""
    data = ABUSE[abuse](LARGE)
    process = psutil.Process()
    before = process.memory_info().rss
    tracemalloc.start()
    try:
        read(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * len(data)
    assert process.memory_info().rss - before < 10 * len(data)


@pytest.mark.parametrize("abuse", ["values", "small numbers", "flags"])
def test_many_typed_elements_are_passed_on_as_they_came(abuse):
    """Large lists that fit are neither refused nor parsed."""
    data = ABUSE[abuse](SMALL)
    parts = RequestParts(data, sizes)
    model = Model("m", ("1",), 0, {n: i._replace(optional=True) for n, i in INPUTS.items()},
                  MODEL.outputs, False, None, None)  # fmt: skip
    check_request(parts, model)
    parts.header.id = "ours"
    actual = service_pb2.ModelInferRequest.FromString(parts.message())
    expected = service_pb2.ModelInferRequest.FromString(data)
    expected.id = "ours"
    assert actual == expected


def test_a_model_may_have_many_inputs():
    """The bound is the model's own number of inputs."""
    request = service_pb2.ModelInferRequest(model_name="m")
    for n in range(700):
        request.inputs.add(name=f"x{n}", datatype="UINT8", shape=[1])
        request.raw_input_contents.append(b"1")
    names = []

    def wide(name: str) -> tuple[int, int]:
        names.append(name)
        return 700, 0

    parts = RequestParts(request.SerializeToString(), wide)
    check_request(parts, WIDE)
    assert names == ["m"]
    with pytest.raises(InvalidRequest, match="too many"):
        RequestParts(request.SerializeToString(), sizes)


def test_a_model_that_is_not_served_is_refused_early():
    with pytest.raises(NotFound):
        RequestParts(b"\x0a\x01n" + b"\x3a\0" * 1000, sizes)


@pytest.mark.parametrize(
    ("dtype", "name", "contents", "count"),
    [
        ("INT8", "small", field(2, b"\x80\1" * 5000), 5000),  # 128
        ("INT64", "long", field(3, b"\1" * 5000), 4999),
        ("INT64", "long", field(3, b"\1" * 5000 + b"\x80"), 5000),
        ("INT64", "long", field(3, b"\x80" * 10 + b"\1" * 5000), 5001),
        ("FP32", "x", field(6, bytes(20_001)), 5000),
        ("BYTES", "text", field(8, b"ab") * 2000 + b"\x42\x09a", 2001),
        ("BYTES", "text", field(8, b"ab") * 2000 + b"\x42", 2001),
        ("BYTES", "text", field(8, b"ab") * 2000 + b"\x08\1", 2001),
        ("INT64", "long", field(3, b"\1" * 5000) + field(2, b"\1"), 5000),
    ],
)
def test_large_lists_that_do_not_fit_are_refused(dtype, name, contents, count):
    with pytest.raises(InvalidRequest):
        check_request(RequestParts(tensor(name, dtype, count, contents), sizes), MODEL)
