"""A request that is short by what its model declares goes to Triton over HTTP, and nobody who reads
the response can tell; every other request goes over gRPC."""

import asyncio
import contextlib
import json
import struct
from dataclasses import replace

import pytest
from tritonclient.grpc import service_pb2

from gateway.core import Gateway
from gateway.errors import (
    GatewayError,
    InvalidRequest,
    NoCapacity,
    UpstreamError,
)
from gateway.models.catalogue import read_model
from gateway.models.short import NOT_SHORT, Short
from gateway.settings import Settings
from gateway.upstream.http_messages import is_short, read_response
from gateway.upstream.server import Upstream
from gateway.upstream.trace_context import upstream_metadata
from tests.gateway.eventually import until
from tests.gateway.fake_triton import public
from tests.gateway.upstream.http_triton import FakeTriton, binary, head, whole

OUTPUTS = [("y", "FP32", [1, 2], struct.pack("<2f", 0.5, -1)), ("s", "BYTES", [1], b"\1\0\0\0a")]
SHORT = Short(8)


@pytest.fixture
async def triton():
    fake = FakeTriton()
    fake.http = binary(OUTPUTS)
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def upstream(triton, tmp_path):
    upstream = Upstream(f"127.0.0.1:{triton.grpc_port}/{triton.http_port}", tmp_path / "key")
    yield upstream
    await upstream.close()


def _request(values: int = 2, **fields) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name="m", **fields)
    request.inputs.add(name="x", datatype="FP32", shape=[1, values])
    request.raw_input_contents.append(bytes(4 * values))
    return request


def _with_parameter() -> service_pb2.ModelInferRequest:
    request = _request()
    request.parameters["truncate"].bool_param = True
    return request


def _with_classes() -> service_pb2.ModelInferRequest:
    request = _request()
    request.outputs.add(name="y").parameters["classification"].int64_param = 1
    return request


@pytest.mark.parametrize(
    ("request_", "short_bytes", "over_http"),
    [
        (_request(2), 8, True),
        (_request(3), 8, False),
        (_request(0), 8, True),
        (_request(2), 0, False),
        (_with_parameter(), 8, False),
        (_with_classes(), 8, False),
    ],
    ids=["short", "longer", "empty", "undeclared", "with a parameter", "with classes"],
)
async def test_which_way_a_request_goes(triton, upstream, request_, short_bytes, over_http):
    await upstream.infer(request_, 5, Short(short_bytes))
    ways = len(triton.requests), len(triton.grpc_requests)
    assert ways == (int(over_http), int(not over_http))


def test_all_tensors_count_together():
    request = _request()
    request.inputs.add(name="z", datatype="FP32", shape=[1, 2])
    request.raw_input_contents.append(bytes(8))
    assert is_short(request, 16) and not is_short(request, 15)


@pytest.mark.parametrize(
    ("parameters", "short"),
    [
        ({}, Short()),
        ({"short_bytes": "256"}, Short(256)),
        ({"short_bytes": "256", "golden": "{}"}, Short()),  # a 400 could not be asked again
        ({"short_bytes": "many"}, Short()),
        ({"short_bytes": "256", "cancellable": "false"}, Short(128 * 1024)),
        ({"short_bytes": "256", "deterministic": "true"}, Short(256, 8)),
        (
            {"short_bytes": "256", "deterministic": "true", "cancellable": "false"},
            Short(128 * 1024),
        ),
        ({"short_bytes": "256", "deterministic": "true", "golden": "{}"}, Short()),
    ],
    ids=[
        "none",
        "declared",
        "without a golden sample",
        "no number",
        "never cancellable",
        "deterministic",
        "deterministic, never cancellable",
        "deterministic, without a golden sample",
    ],
)
def test_what_a_model_declares(parameters, short):
    config = public("m", **parameters)
    config.max_batch_size = 8
    assert read_model(config, ("1",)).short == short


def test_outputs_of_any_length_are_not_shared():
    config = public("m", short_bytes="256", deterministic="true")
    config.max_batch_size = 8
    config.output[0].dims[:] = [-1]
    assert read_model(config, ("1",)).short == Short(256)


async def test_requests_with_a_trace_are_sent_alone(triton, upstream):
    """Theirs is nobody else's."""
    triton.http = None
    tasks = []
    for number in range(8):
        upstream_metadata.set((("traceparent", f"00-{number}"),) if number else None)
        work = upstream.infer(_request(), 0.2, SHORT._replace(most_rows=8))
        tasks.append(asyncio.create_task(work))
    await asyncio.gather(*tasks, return_exceptions=True)
    traces = sorted(request.partition(b"traceparent: ")[2][:4] for request in triton.requests)
    assert traces == [b"", *(b"00-%d" % number for number in range(1, 8))]


async def test_a_canary_has_a_rule_of_its_own():
    gateway = Gateway(Settings(replicas=("127.0.0.1:1",)))
    model = read_model(public("m", short_bytes="256"), ("1",))
    gateway.catalogue = replace(
        gateway.catalogue, models={"m": model, "m.canary": replace(model, short=NOT_SHORT)}
    )
    names = "m", "m.canary", "gone"
    assert [gateway._short(name).most_bytes for name in names] == [256, 0, 0]
    await gateway.pool.close()


async def test_triton_is_sent_the_whole_message_and_the_trace(triton, upstream):
    request = _request(model_version="3", id='mine "☃')
    request.outputs.add(name="y")
    upstream_metadata.set((("traceparent", "00-ab-cd-01"),))
    await upstream.infer(request, 5, SHORT)
    lines, _, body = triton.requests[0].partition(b"\r\n\r\n")
    assert lines.startswith(b"POST /v2/models/m/versions/3/infer HTTP/1.1\r\n")
    assert b"\r\ntraceparent: 00-ab-cd-01" in lines
    document, raw = json.loads(body[:-8]), body[-8:]
    assert raw == bytes(8)
    assert document == {
        "id": 'mine "☃',
        "inputs": [
            {
                "name": "x",
                "datatype": "FP32",
                "shape": [1, 2],
                "parameters": {"binary_data_size": 8},
            }
        ],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        "parameters": {"binary_data_output": True},
    }


async def test_the_response_is_the_message_that_grpc_would_have_sent(triton, upstream):
    triton.http = binary(OUTPUTS, id="mine", parameters={"sequence_id": 0, "sequence_end": False})
    expected = service_pb2.ModelInferResponse(model_name="m", model_version="1", id="mine")
    expected.parameters["sequence_id"].int64_param = 0
    expected.parameters["sequence_end"].bool_param = False
    for name, dtype, shape, raw in OUTPUTS:
        expected.outputs.add(name=name, datatype=dtype, shape=shape)
        expected.raw_output_contents.append(raw)
    for _ in range(2):  # the second header is known
        assert await upstream.infer(_request(), 5, SHORT) == expected


async def test_a_response_is_its_caller_s_own(triton, upstream):
    """A changed one changes no later one."""
    (await upstream.infer(_request(), 5, SHORT)).model_name = "canary"
    assert (await upstream.infer(_request(), 5, SHORT)).model_name == "m"


@pytest.mark.parametrize(
    "response",
    [
        whole(b"[]"),
        whole(b"no JSON"),
        whole(b'{"model_name":"m","model_version":"1","outputs":[{"name":"y","data":[1]}]}'),
        head(200, 4, b"Inference-Header-Content-Length: 9\r\n") + b"{}{}",
    ],
    ids=["a list", "no JSON", "outputs in JSON", "too short"],
)
async def test_what_is_no_response_is_the_upstream_s_fault(triton, upstream, response):
    triton.http = response
    with pytest.raises(UpstreamError, match="the model failed"):
        await upstream.infer(_request(), 5, SHORT)


def test_a_size_that_is_not_there_is_an_error():
    _, _, body = binary(OUTPUTS).partition(b"\r\n\r\n")
    length = body.rindex(b"]}") + 2
    assert len(read_response(body, length).raw_output_contents) == 2
    for wrong in (body[:-1], body + b"x"):
        with pytest.raises(ValueError, match="bytes"):
            read_response(wrong, length)


@pytest.mark.parametrize(
    ("status", "details", "error_type"),
    [
        (400, "[tidegate:invalid_input row=0] too long", InvalidRequest),
        (500, "[tidegate:invalid_input] too long", InvalidRequest),
        (500, "[tidegate:no_capacity] full", NoCapacity),
        (404, "unknown model", NoCapacity),
        (503, "busy", NoCapacity),
        (500, "secret path /root/model.bin", UpstreamError),
    ],
)
async def test_errors_are_those_of_grpc_and_are_asked_once(
    triton, upstream, status, details, error_type
):
    triton.http = whole(json.dumps({"error": details}).encode(), status)
    with pytest.raises(error_type) as caught:
        await upstream.infer(_request(), 5, SHORT)
    assert "/root" not in caught.value.message
    assert (len(triton.requests), len(triton.grpc_requests)) == (1, 0)


async def test_a_400_that_may_mean_three_things_is_asked_again_over_grpc(triton, upstream):
    triton.http = whole(b'{"error":"input byte size mismatch in /root/models"}', 400)
    response = await upstream.infer(_request(), 5, SHORT)
    assert response.model_version == "over gRPC"
    assert (len(triton.requests), len(triton.grpc_requests)) == (1, 1)


async def test_without_an_http_api_grpc_is_used(triton, upstream):
    await triton.stop_http()
    assert (await upstream.infer(_request(), 5, SHORT)).model_version == "over gRPC"


async def test_a_broken_connection_is_a_lost_replica(triton, upstream):
    triton.http = None
    task = asyncio.create_task(upstream.infer(_request(), 5, SHORT))
    await until(lambda: triton.requests)
    triton.connections[0].close()
    with pytest.raises(NoCapacity) as caught:
        await task
    assert caught.value.was_sent


async def _give_up(triton, upstream, how: str) -> None:
    """Ask, and do not wait for the response."""
    asked = len(triton.requests)
    timeout_s = 0.1 if how == "late" else 5
    task = asyncio.create_task(upstream.infer(_request(), timeout_s, SHORT))
    await until(lambda: len(triton.requests) > asked)
    if how == "cancelled":
        task.cancel()
    with pytest.raises((asyncio.CancelledError, GatewayError)):
        await task


@pytest.mark.parametrize("how", ["cancelled", "late"])
async def test_behind_a_request_that_was_given_up_others_go_over_grpc(triton, upstream, how):
    """Until Triton has finished it: requests that nobody can end do not pile up."""
    triton.http, answer = None, triton.http
    await _give_up(triton, upstream, how)
    for _ in range(2):
        assert (await upstream.infer(_request(), 5, SHORT)).model_version == "over gRPC"
    triton.http = answer
    triton.connections[0].write(answer)
    await until(lambda: not upstream.http_upstream._http.is_behind)
    assert (await upstream.infer(_request(), 5, SHORT)).model_version == "1"


@pytest.mark.parametrize("how", ["cancelled", "late"])
async def test_a_lost_connection_ends_the_wait_for_what_was_given_up(triton, upstream, how):
    triton.http, answer = None, triton.http
    await _give_up(triton, upstream, how)
    triton.connections[0].close()
    triton.http = answer
    await until(lambda: not upstream.http_upstream._http.is_behind)
    assert (await upstream.infer(_request(), 5, SHORT)).model_version == "1"


async def test_what_was_answered_as_its_caller_left_holds_nobody_up(triton, upstream):
    """The response and the cancel meet: nothing is left to wait for."""
    for _ in range(20):
        task = asyncio.create_task(upstream.infer(_request(), 5, SHORT))
        asked = len(triton.requests)
        await until(lambda asked=asked: len(triton.requests) > asked)
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    await until(lambda: not upstream.http_upstream._http.is_behind)
    assert (await upstream.infer(_request(), 5, SHORT)).model_version == "1"
