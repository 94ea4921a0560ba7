"""The HTTP upstream against a fake Triton: it responds as gRPC does, and only for models that
declare it."""

import asyncio
import json
import re
import struct
import time
from dataclasses import replace

import pytest
from tritonclient.grpc import model_config_pb2

from gateway.api.v2.routes import V2Api
from gateway.core import Gateway
from gateway.errors import DeadlineExceeded, GatewayError, InvalidRequest, NoCapacity, UpstreamError
from gateway.models.catalogue import Catalogue, read_model
from gateway.settings import Settings
from gateway.upstream.http_upstream import to_reply
from gateway.upstream.triton_http import Response
from modelspec.dtypes import protocol_name
from tests.gateway.eventually import until
from tests.gateway.request_contexts import context_of
from tests.gateway.upstream.http_triton import ANSWER, FakeTriton, binary, head, whole

TENSOR = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2.5]}
RAW = struct.pack("<2f", 1, 2.5)


def _config(**parameters: str) -> model_config_pb2.ModelConfig:
    config = model_config_pb2.ModelConfig(name="m", max_batch_size=8)
    config.input.add(name="x", data_type=model_config_pb2.TYPE_FP32, dims=[-1])
    config.output.add(name="y", data_type=model_config_pb2.TYPE_FP32, dims=[-1])
    for name, value in parameters.items():
        config.parameters[f"tidegate.{name}"].string_value = value
    return config


@pytest.fixture
async def triton():
    fake = FakeTriton()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def gateway(triton):
    replica = f"127.0.0.1:{triton.grpc_port}/{triton.http_port}"
    gateway = Gateway(Settings(replicas=(replica,)))
    model = read_model(_config(cancellable="false"), ("1",))
    gateway.catalogue = Catalogue({"m": model})
    yield gateway
    await gateway.pool.close()


async def _infer(gateway: Gateway, *, deadline_s: float = 5, tail: bytes = b"", **document):
    """The V2 API's reply to a client that stays connected."""
    body = json.dumps({"inputs": [TENSOR], **document}).encode()
    headers = [(b"inference-header-content-length", b"%d" % len(body))] if tail else []
    messages = [{"type": "http.request", "body": body + tail}]

    async def receive():
        return messages.pop() if messages else await asyncio.Future()

    scope = {"path": "/v2/models/m/infer", "headers": headers, "path_params": {"model": "m"}}
    context = context_of(scope, receive, deadline_s=deadline_s)
    return await V2Api(gateway).infer(context)


def _sent(request: bytes) -> tuple[bytes, dict, bytes]:
    """The head, the JSON and the binary tail of the request to Triton."""
    head, _, body = request.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"\r\ninference-header-content-length: ")[1].split(b"\r\n")[0])
    return head, json.loads(body[:length]), body[length:]


@pytest.mark.parametrize(
    ("document", "count", "uses_http"),
    [
        ({}, 32 * 1024, True),
        ({}, 32 * 1024 + 1, False),
        ({"outputs": [{"name": "y", "parameters": {"binary_data": True}}]}, 100_000, True),
        ({"outputs": [{"name": "y"}]}, 100_000, False),
        ({"parameters": {"binary_data_output": True}}, 100_000, True),
    ],
)
async def test_triton_is_not_asked_for_much_json(triton, gateway, document, count, uses_http):
    """It would write it in a thread that other callers' requests wait for."""
    raw = bytes(4 * count)
    tensor = {"name": "x", "shape": [1, count], "datatype": "FP32"}
    tensor["parameters"] = {"binary_data_size": len(raw)}
    await _infer(gateway, tail=raw, inputs=[tensor], **document)
    assert (len(triton.requests), len(triton.grpc_requests)) == (int(uses_http), int(not uses_http))


async def test_the_answer_goes_on_as_it_is(triton, gateway):
    reply = await _infer(gateway)
    assert (reply.status, reply.body, reply.content_type) == (200, ANSWER, b"application/json")
    assert not triton.grpc_requests


async def test_triton_is_sent_what_the_firewall_checked_and_no_more(triton, gateway):
    dropped = {"priority": 1, "timeout": 10**6, "triton_enable_empty_final_response": True}
    extra = {"unknown": 1, "id": "mine", "outputs": [{"name": "y"}], "parameters": dropped}
    await _infer(gateway, **extra)
    head, document, tail = _sent(triton.requests[0])
    assert head.startswith(b"POST /v2/models/m/infer HTTP/1.1\r\n")
    sent = {"name": "x", "datatype": "FP32", "shape": [1, 2]}
    assert document == {
        "id": "mine",
        "inputs": [{**sent, "parameters": {"binary_data_size": 8}}],
        "outputs": [{"name": "y", "parameters": {"binary_data": False}}],
        "parameters": {"binary_data_output": False},
    }
    assert tail == RAW


async def test_a_key_that_is_sent_twice_never_reaches_triton(triton, gateway):
    body = b'{"inputs": [{"name": "secret", "name": "x", "shape": [1, 1], "datatype": "FP32", '
    body += b'"data": [9, 9], "data": [3]}]}'
    messages = [{"type": "http.request", "body": body}]

    async def receive():
        return messages.pop() if messages else await asyncio.Future()

    scope = {"path": "/v2/models/m/infer", "headers": [], "path_params": {"model": "m"}}
    with pytest.raises(InvalidRequest, match="is in one object twice"):
        await V2Api(gateway).infer(context_of(scope, receive, deadline_s=5))
    assert not triton.requests


async def test_binary_both_ways(triton, gateway):
    document = ANSWER.replace(b"[]", b'[{"name":"y","parameters":{"binary_data_size":3}}]')
    more = b"Inference-Header-Content-Length: %d\r\n" % len(document)
    triton.http = head(200, len(document) + 3, more) + document + b"NaN"  # bytes, not a number
    tensor = {k: v for k, v in TENSOR.items() if k != "data"}
    tensor["parameters"] = {"binary_data_size": 8}
    reply = await _infer(
        gateway, inputs=[tensor], parameters={"binary_data_output": True}, tail=RAW
    )
    assert reply.body == document + b"NaN"
    assert reply.content_type == b"application/octet-stream"
    assert reply.headers == [(b"inference-header-content-length", b"%d" % len(document))]
    assert _sent(triton.requests[0])[1]["parameters"] == {"binary_data_output": True}


@pytest.mark.parametrize(
    "extra",
    [
        {"parameters": {"mine": 1}},
        {"outputs": [{"name": "y", "parameters": {"classification": 1}}]},
    ],
)
async def test_what_triton_needs_beyond_tensors_goes_over_grpc(triton, gateway, extra):
    await _infer(gateway, **extra)
    assert len(triton.grpc_requests) == 1
    assert not triton.requests


@pytest.mark.parametrize("parameters", [{}, {"short": "false"}])
async def test_a_model_that_does_not_ask_never_comes_here(triton, gateway, parameters):
    await _only_grpc(triton, gateway, _config(**parameters))


@pytest.mark.parametrize(
    ("data_type", "steps", "raw", "data"),
    [
        ("TYPE_STRING", 0, b"\2\0\0\0hi", ["hi"]),
        ("TYPE_FP16", 0, b"\x00\x3e", [1.5]),
        ("TYPE_FP32", 1, b"\0\0\x20\x40", [2.5]),
    ],
)
async def test_a_model_whose_json_triton_writes_otherwise_is_asked_for_binary(
    triton, gateway, data_type, steps, raw, data
):
    config = _config(cancellable="false")
    config.output[0].data_type = model_config_pb2.DataType.Value(data_type)
    for _ in range(steps):
        config.ensemble_scheduling.step.add(model_name="n")
    gateway.catalogue = Catalogue({"m": read_model(config, ("1",))})
    dtype = protocol_name(config.output[0].data_type)
    triton.http = binary([("y", dtype, [1, 1], raw)])
    document = json.loads((await _infer(gateway)).body)
    assert document["outputs"] == [{"name": "y", "datatype": dtype, "shape": [1, 1], "data": data}]
    assert _sent(triton.requests[0])[1]["parameters"] == {"binary_data_output": True}
    assert not triton.grpc_requests


async def _only_grpc(triton, gateway, config) -> None:
    gateway.catalogue = Catalogue({"m": read_model(config, ("1",))})
    await _infer(gateway)
    assert len(triton.grpc_requests) == 1
    assert not triton.requests


@pytest.mark.parametrize(
    ("status", "details", "error_type", "message"),
    [
        (500, "[tidegate:invalid_input] too long", InvalidRequest, "too long"),
        (404, "unknown model at /root", NoCapacity, "not being served now"),
        (503, "busy", NoCapacity, "no server can take this"),
        (500, "secret path /root/model.bin", UpstreamError, "the model failed"),
    ],
)
async def test_triton_s_errors_are_those_of_grpc(
    triton, gateway, status, details, error_type, message
):
    triton.http = whole(json.dumps({"error": details}).encode(), status)
    with pytest.raises(error_type, match=message) as caught:
        await _infer(gateway)
    assert "/root" not in caught.value.message


async def test_a_400_may_mean_three_things_and_grpc_says_which(triton, gateway):
    triton.http = whole(b'{"error":"input byte size mismatch in /root/models"}', 400)
    assert b"over gRPC" in (await _infer(gateway)).body
    assert len(triton.requests) == len(triton.grpc_requests) == 1


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
async def test_what_json_cannot_carry_is_refused(triton, gateway, value):
    outputs = f'[{{"name":"y","datatype":"FP32","shape":[1,2],"data":[1.5,{value}]}}]'
    triton.http = whole(ANSWER.replace(b"[]", outputs.encode()))
    with pytest.raises(InvalidRequest, match="'y' has NaN or Infinity"):
        await _infer(gateway)


async def test_the_output_that_json_cannot_carry_is_named_whatever_stands_in_names(triton, gateway):
    named = json.dumps('say "data":[NaN], "name":')
    good = f'{{"name":{named},"datatype":"FP32","shape":[1,1],"data":[1.5]}}'
    outputs = f'[{good},{{"name":"a,\\"b","datatype":"FP32","shape":[1,1],"data":[NaN]}}]'
    triton.http = whole(ANSWER.replace(b"[]", f"[{good}]".encode()))
    assert json.loads((await _infer(gateway)).body)["outputs"][0]["data"] == [1.5]
    triton.http = whole(ANSWER.replace(b"[]", outputs.encode()))
    with pytest.raises(InvalidRequest, match=re.escape("'a,\"b' has NaN or Infinity")):
        await _infer(gateway)


def test_a_large_answer_with_nan_holds_nobody_up():
    """Its elements are not read to find it: that takes 60 times as long."""
    data = b"1.5," * 4_000_000
    output = b'[{"name":"y","datatype":"FP32","shape":[1,4000001],"data":[%bNaN]}]' % data
    response = Response(200, None, ANSWER.replace(b"[]", output))
    times = []
    for _ in range(5):
        started = time.thread_time()
        with pytest.raises(InvalidRequest, match="'y' has NaN or Infinity"):
            to_reply(response)
        times.append(time.thread_time() - started)
    assert min(times) < 0.1


async def test_an_id_may_be_called_nan(triton, gateway):
    triton.http = whole(ANSWER.replace(b"{", b'{"id":"NaN",', 1))
    assert json.loads((await _infer(gateway)).body)["id"] == "NaN"


@pytest.mark.parametrize(
    "response",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        whole(ANSWER) + b"more",
        whole(b"<html>", 502),
    ],
)
async def test_an_invalid_response_is_the_upstream_s_fault(triton, gateway, response):
    triton.http = response
    with pytest.raises(UpstreamError):
        await _infer(gateway)


async def test_an_answer_may_come_in_pieces(triton, gateway):
    triton.http = None
    task = asyncio.create_task(_infer(gateway))
    await until(lambda: triton.requests)
    for byte in whole(ANSWER):
        triton.connections[0].write(bytes([byte]))
        await asyncio.sleep(0)
    assert (await task).body == ANSWER


async def test_the_deadline_ends_the_request_and_its_connection(triton, gateway):
    triton.http = None
    with pytest.raises(DeadlineExceeded, match="did not answer in time"):
        await _infer(gateway, deadline_s=0.1)
    await until(lambda: triton.connections[0].is_closing())
    triton.http = whole(ANSWER)
    assert (await _infer(gateway)).body == ANSWER


async def test_a_request_s_own_timeout_is_a_deadline(triton, gateway):
    triton.http = None
    with pytest.raises(DeadlineExceeded):
        await _infer(gateway, parameters={"timeout": 100_000})


async def test_connections_are_used_again(triton, gateway):
    for _ in range(5):
        await _infer(gateway)
    assert len(triton.connections) == 1
    await asyncio.gather(*(_infer(gateway) for _ in range(5)))
    assert len(triton.connections) == 5


async def test_a_cancelled_request_gives_back_its_permit_and_not_its_connection(triton, gateway):
    triton.http = None
    task = asyncio.create_task(_infer(gateway))
    await until(lambda: triton.requests)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gateway.pool.permit().inflight == 0
    await until(lambda: triton.connections[0].is_closing())


async def test_without_an_http_api_grpc_is_used(triton, gateway):
    await triton.stop_http()
    assert b"over gRPC" in (await _infer(gateway)).body


async def test_a_connection_that_breaks_is_no_capacity_now(triton, gateway):
    triton.http = None
    task = asyncio.create_task(_infer(gateway))
    await until(lambda: triton.requests)
    triton.connections[0].close()
    with pytest.raises(NoCapacity, match="try again shortly") as caught:
        await task
    assert caught.value.retry_after_s == 1
    assert not triton.grpc_requests  # it may have been served: it is not sent again


async def test_http_connections_end_when_grpc_s_does(triton, gateway):
    """A process that Triton forked keeps the socket of a killed Triton open, and says nothing."""
    await _infer(gateway, parameters={"mine": 1})  # over gRPC, which is connected from here on
    triton.http = None
    task = asyncio.create_task(_infer(gateway, deadline_s=60))
    await until(lambda: triton.requests)
    await triton.stop_grpc()
    with pytest.raises(NoCapacity):
        await asyncio.wait_for(task, 20)


async def test_with_both_apis_closed_the_error_is_that_of_grpc(triton, gateway):
    await triton.stop()
    with pytest.raises(GatewayError) as over_http:
        await _infer(gateway)
    gateway.catalogue = Catalogue(
        {"m": replace(gateway.catalogue.model("m"), uses_http_upstream=False)}
    )
    with pytest.raises(GatewayError) as over_grpc:
        await _infer(gateway)
    assert over_http.value.args == over_grpc.value.args
    assert over_http.value.code == over_grpc.value.code == "no_capacity"
