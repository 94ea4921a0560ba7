"""Work for a request grows no faster than the request, and is bounded before it is done."""

import contextlib
import gc
import json
import random
import threading
import time
from pathlib import Path

import numpy as np
import orjson
import pytest

from gateway.api.v2 import request as v2_request
from gateway.api.v2.request import parse
from gateway.errors import InvalidRequest
from gateway.http import large_json
from gateway.http.json_body import parse_json
from gateway.http.large_json import cut_arrays, parse_large
from gateway.models.catalogue import Model, TensorMeta

SIZE = 10_000_000
GIVEN_UP_S = 30.0


def model_of(dtype="FP32", dims=(-1,), inputs=1, max_batch_size=0):
    """A model with inputs x0, x1, ..., all alike, and as many outputs."""
    tensors = {f"x{index}": TensorMeta(f"x{index}", dtype, dims) for index in range(inputs)}
    outputs = {f"y{index}": TensorMeta(f"y{index}", dtype, dims) for index in range(inputs)}
    return Model("m", ("1",), max_batch_size, tensors, outputs, False, None, None)


def filled(unit: bytes, size: int = SIZE) -> bytes:
    """A JSON list of about ``size`` bytes."""
    return b"[" + unit * (size // len(unit)) + unit.removesuffix(b",") + b"]"


def entry(index: int, **fields) -> dict:
    return {"name": f"x{index}", "datatype": "FP32", "shape": [0], "data": [], **fields}


def v2(data: bytes, shape: list[int], dtype="FP32") -> bytes:
    head = orjson.dumps({"name": "x0", "datatype": dtype, "shape": shape})[:-1]
    return b"".join((b'{"id":"a","inputs":[', head, b',"data": ', data, b'}],"outputs":null}'))


def outcome(work, *arguments):
    try:
        return work(*arguments)
    except InvalidRequest as error:
        return error.message


# --- the parser that reads in pieces ---------------------------------------------------------


SCALARS = [1, -2.5, None, True, "a", "x,y", 'q"w', "\\", '\\\\"', "[{:,", '":', "é漢"]


def random_value(rnd: random.Random, depth: int = 0):
    draw = rnd.random()
    if depth > 5 or draw < 0.4:
        return rnd.choice(
            [1, -2.5, None, True, "a", "x,y", 'q"w', "\\", '\\\\"', "[{:,", '":', "é漢"]
        )
    if draw < 0.7:
        return [random_value(rnd, depth + 1) for _ in range(rnd.randint(0, 5))]
    return {
        rnd.choice(["a", '"', "\\", ",", ":", "é"]) + str(index): random_value(rnd, depth + 1)
        for index in range(rnd.randint(0, 5))
    }


def damaged(rnd: random.Random, text: bytes) -> bytes:
    body = bytearray(text)
    position, character = rnd.randrange(len(body)), rnd.choice(b'[]{},:"\\1 a')
    change = rnd.randrange(3)
    if change == 0 and len(body) > 1:
        del body[position]
    elif change == 1:
        body.insert(position, character)
    else:
        body[position] = character
    return bytes(body)


def read_whole(text: bytes):
    """The document in a list, or None if it is invalid: Python's parser, as strict as ours."""

    def refuse_duplicates(pairs):
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError
        return dict(pairs)

    def no_constant(name):
        raise ValueError(name)

    try:
        return [json.loads(text, object_pairs_hook=refuse_duplicates, parse_constant=no_constant)]
    except ValueError:
        return None


@pytest.mark.parametrize("seed", range(4))
def test_a_document_read_in_pieces_is_the_same_document(seed, monkeypatch):
    rnd = random.Random(seed)  # noqa: S311 - no secret
    broken = 0
    for _ in range(150):
        monkeypatch.setattr(large_json, "PIECE_BYTES", rnd.choice([3, 7, 20, 64]))
        indent, ascii_only = rnd.choice([None, 1]), rnd.random() < 0.5
        text = json.dumps(random_value(rnd), ensure_ascii=ascii_only, indent=indent).encode()
        if rnd.random() < 0.5:
            text = damaged(rnd, text)
        expected = read_whole(text)
        broken += expected is None
        try:
            assert [parse_large(text)] == expected, text
        except InvalidRequest:
            assert expected is None, text
    assert broken > 10


@pytest.mark.parametrize("shape", [[6000], [2, 3000], [3, 1000, 2], [6000, 1]])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(("dtype", "kind"), [("FP32", "<f4"), ("INT64", "<i8"), ("BOOL", "?")])
def test_a_long_array_is_packed_as_a_short_one_is(shape, indent, dtype, kind, monkeypatch):
    monkeypatch.setattr("gateway.models.tensors.SLICE_BYTES", 1000)
    values = np.arange(6000) * (2**50 + 1 if dtype == "INT64" else 1)
    if dtype == "BOOL":
        values = values % 3 == 0
    document = {
        "inputs": [
            {
                "name": "x0",
                "datatype": dtype,
                "shape": shape,
                "data": values.reshape(shape).tolist(),
            }
        ],
        "parameters": {"data": "kept", "n": 3},
    }
    body = json.dumps(document, indent=indent).encode().ljust(100_000)
    rest, _ = cut_arrays(body)
    assert len(rest.rstrip()) < 600
    request = parse(model_of(dtype, (-1,) * len(shape)), "", body, None)
    assert request.tensors[0].raw == values.astype(kind).tobytes()
    assert request.parameters == {"data": "kept", "n": 3}


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b"[0,1,2", b"[0,1,[2]", 1),
        lambda text: text.replace(b"[0,1,2", b"[0[,1,2", 1),
        lambda text: text.replace(b"[0,1,2", b"[0 1,2", 1),
        lambda text: text.replace(b"[0,1,2", b"[[0]1,2", 1),
        lambda text: text.replace(b"[0,1,2", b"[0,,1,2", 1),
        lambda text: text.replace(b"[0,1,2", b"[0,1,NaN", 1),
        lambda text: text.replace(b"[0,1,2", b"[0,1,null", 1),
        lambda text: text.replace(b"[0,1,2", b"[0,1,1e39", 1),
        lambda text: text.replace(b"[0,1,2", b"[0,1", 1),
        lambda text: text.replace(b"[0,1,2", b"0,1,2", 1),
        lambda text: text.replace(b",49999]", b",49999", 1),
        lambda text: text.replace(b",49999]", b",49999],[1]", 1),
        lambda text: text.replace(b",49999]", b",49999,]", 1),
        lambda text: text.replace(b",49999]", b",49999]]", 1),
        lambda text: text.replace(b"[0,1,2", b"[" + b"1" * 70_000 + b",1,2", 1),
    ],
)
def test_an_invalid_long_array_is_refused(change):
    body = v2(orjson.dumps(list(range(50_000))), [50_000])
    assert len(parse(model_of(), "", body, None).tensors[0].raw) == 200_000
    broken = change(body)
    assert broken != body
    with pytest.raises(InvalidRequest):
        parse(model_of(), "", broken, None)


def test_a_long_array_stands_for_data_only():
    """A request cannot use its placeholder, while the rest is parsed, anywhere else."""
    long = b"[" + b"1," * 50_000 + b"1]"
    for key in (b"id", b"parameters", b"outputs"):
        body = v2(b"[1]", [1]).replace(b'"outputs":null', b'"%s":%s' % (key, long))
        with pytest.raises(InvalidRequest):
            parse(model_of(), "", body.replace(b'"id":"a",', b""), None)
    body = v2(b"[1]", [1]).replace(b'"outputs":null', b'"parameters":{"data":%s}' % long)
    with pytest.raises(InvalidRequest):
        parse(model_of(), "", body, None).message()


# --- counts --------------------------------------------------------------------------------

COUNTED = {
    "inputs": lambda n: orjson.dumps({"inputs": [entry(index) for index in range(n)]}),
    "the same input": lambda n: orjson.dumps({"inputs": [entry(0) for _ in range(n)]}),
    "outputs": lambda n: orjson.dumps(
        {"inputs": [entry(0)], "outputs": [{"name": f"y{index}"} for index in range(n)]}
    ),
    "parameters": lambda n: orjson.dumps(
        {"inputs": [entry(0)], "parameters": {f"p{index}": index for index in range(n)}}
    ),
    "an input's parameters": lambda n: orjson.dumps(
        {"inputs": [entry(0, parameters={f"p{index}": index for index in range(n)})]}
    ),
    "unknown keys": lambda n: orjson.dumps(
        {"inputs": [entry(0)], **{f"k{index}": index for index in range(n)}}
    ),
    "lists": lambda n: v2(filled(b"[],", 3 * n), [n]),
    "nested": lambda n: v2(b"[" * n + b"]" * n, [1]),
    "numbers": lambda n: v2(filled(b"0.5,", 4 * n), [n + 1]),
    "strings": lambda n: v2(filled(b'"a",', 4 * n), [n]),
    "dimensions": lambda n: v2(b"[]", [0] * n),
    "keys twice": lambda n: b"{" + b'"a":0,' * n + b'"b":1}',
    "quotes and colons in a string": lambda n: orjson.dumps({"id": '":' * n}),
    "backslashes": lambda n: orjson.dumps({"id": "\\" * n}),
}


@pytest.mark.parametrize("what", COUNTED)
def test_time_is_linear_in_the_count(what):
    """Quadratic would be a hundred times as long; caches make it more than ten."""
    few, many = (best_of(COUNTED[what](count)) for count in (20_000, 200_000))
    assert many <= 30 * max(few, 0.003)


def best_of(body: bytes, times: int = 8) -> float:
    """CPU seconds of this thread."""
    seconds = []
    for _ in range(times):
        started = time.thread_time()
        outcome(parse, model_of(), "", body, None)
        seconds.append(time.thread_time() - started)
    return min(seconds)


@pytest.mark.parametrize(
    "body_kind", ["inputs", "the same input", "outputs", "parameters", "an input's parameters"]
)
def test_a_count_is_refused_by_the_models_own_numbers(body_kind):
    message = outcome(parse, model_of(inputs=2), "", COUNTED[body_kind](70), None)
    assert isinstance(message, str)
    assert "70" in message
    assert len(message) < 200


# --- ten megabytes -------------------------------------------------------------------------

ABUSIVE = {
    "empty objects": v2(filled(b"{},"), [1]),
    "empty lists": v2(filled(b"[],"), [1]),
    "short strings": v2(filled(b'"a",'), [1], "BYTES"),
    "objects with a key": v2(filled(b'{"a":0},'), [1]),
    "keys": b"{" + b",".join(b'"k%d":0' % index for index in range(800_000)) + b"}",
    "one key": b"{" + b'"a":0,' * (SIZE // 6) + b'"b":1}',
    "inputs": b'{"inputs":' + filled(b'{"name":"x"},') + b"}",
    "nested": b"[" * SIZE,
    "nested lists of one": v2(filled(b"[1],"), [2_500_001]),
    "colons in a string": b'{"id":"' + b'\\":' * (SIZE // 3) + b'"}',
    "spaces": b" " * SIZE,
    "no JSON": b"a" * SIZE,
    "parameters": b'{"inputs":[],"parameters":{' + b'"p":{},' * (SIZE // 7) + b'"q":1}}',
}
GOOD = {
    "floats": (v2(filled(b"0.12345678901234567,"), [500_001]), model_of()),
    "short floats": (v2(filled(b"0.5,"), [2_500_001]), model_of()),
    "integers": (v2(filled(b"7,"), [5_000_001]), model_of()),
    "rows of three": (v2(filled(b"[0.123,0.456,0.789],"), [500_001, 3]), model_of(dims=(-1, 3))),
    "a text": (
        v2(orjson.dumps(['He said: "a, b" {} [1] \\ ' * 400_000]), [1], "BYTES"),
        model_of("BYTES"),
    ),
    "texts": (
        v2(orjson.dumps([f"text {index} of many" for index in range(250_000)]), [250_000], "BYTES"),
        model_of("BYTES"),
    ),
}


@pytest.mark.parametrize("what", [*ABUSIVE, *GOOD])
def test_ten_megabytes_hold_nobody_up_and_take_no_hundred(what):
    body, model = (ABUSIVE[what], model_of()) if what in ABUSIVE else GOOD[what]
    result = outcome(parse, model, "", body, None)
    assert isinstance(result, str) == (what in ABUSIVE), result
    del result
    peak = peak_bytes(parse, model, "", body, None)
    assert peak < max(9 * len(body), 64 * 2**20)  # the body itself makes it ten
    gaps = (longest_gap(parse, model, "", body, None) for _ in range(3))
    assert any(gap < 0.1 for gap in gaps)


def peak_bytes(work, *arguments) -> int:
    """How much this process grew during the work."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak before
    before = memory("VmRSS")
    outcome(work, *arguments)
    return memory("VmHWM") - before


def memory(what: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{what}:")[1].split()[0]) * 1024


def longest_gap(work, *arguments) -> float:
    """CPU seconds that the work took, in a thread, while no other thread could run."""
    thread = threading.Thread(target=outcome, args=(work, *arguments))
    thread.start()
    clock = time.pthread_getcpuclockid(thread.ident)
    last, longest = time.clock_gettime(clock), 0.0
    while thread.is_alive():
        time.sleep(0.0005)
        with contextlib.suppress(OSError):  # it has just ended
            now = time.clock_gettime(clock)
            last, longest = now, max(longest, now - last)
    return longest


def test_a_small_body_is_not_sent_to_another_thread():
    assert not v2_request.is_large(model_of(), b"x" * 1000, None)
    assert not v2_request.is_large(model_of(), b"x" * 10_000_000, b"200")
    assert v2_request.is_large(model_of("BYTES"), b"x" * 10_000_000, b"200")
    assert v2_request.is_large(model_of(), b"x" * 10_000_000, None)
    assert parse_json(b'{"a": 1}') == {"a": 1}
