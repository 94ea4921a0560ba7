"""The resources that streams may hold, and for how long: a real Triton, stock clients."""

import asyncio
import contextlib
import logging
import threading
import time

import grpc
import numpy as np
import psutil
import pytest
from tritonclient.grpc import InferenceServerClient, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from gateway.api.grpc import caller_bounds
from gateway.api.grpc.stream_errors import fault_of
from gateway.errors import Forbidden, NoCapacity
from modelspec.files import atomic_write
from tests.e2e.grpc_models import POLICY, RunningGrpcServer, serving
from tests.e2e.test_grpc_api import Streaming, _input, _metadata
from tests.running import wait_until

STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
ONE_AT_ONCE = (
    POLICY
    + """
[[limits]]
scope = "tenant"
kind = "concurrency"
amount = 1
tenants = ["some"]
"""
)
OPEN_POLICY = ONE_AT_ONCE.replace('models = ["echo", "tally"]', 'models = ["*"]')


@pytest.fixture(scope="module")
def triton(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("streams")) as running:
        yield running


@pytest.fixture(scope="module")
def api(triton, tmp_path_factory):
    home = tmp_path_factory.mktemp("api")
    with RunningGrpcServer(triton, home, OPEN_POLICY, deadline_s=6.0, max_inflight=40) as running:
        yield running


@pytest.fixture
def inflight(api):
    def read() -> int:
        return sum(replica.inflight for replica in api.gateway.pool.replicas)

    wait_until(lambda: read() == 0, 30, "the permits of the test before come back")
    return read


@contextlib.contextmanager
def silent_streams(api, tenant: str, count: int):
    """``count`` streams without a message, on three connections; yields their statuses as they
    end."""
    ended = threading.Event()
    codes: list[str] = []
    channels = [
        grpc.insecure_channel(api.address, [("grpc.use_local_subchannel_pool", 1)])
        for _ in range(3)
    ]

    def messages():
        ended.wait()
        yield from ()

    calls = []
    for n in range(count):
        call = channels[n % 3].stream_stream(STREAM)(messages(), metadata=_metadata(api, tenant))
        call.add_callback(lambda: None)
        calls.append(call)

        def note(future, call=call) -> None:
            codes.append(call.code().name)

        call.add_done_callback(note)
    try:
        yield codes
    finally:
        for call in calls:
            call.cancel()
        ended.set()
        for channel in channels:
            channel.close()


def test_silent_streams_hold_nothing_that_others_need(api, inflight):
    """512 of them once took every permit; beyond a cap they are refused."""
    with silent_streams(api, "some", 150) as codes:
        wait_until(lambda: len(codes) >= 150 - caller_bounds.MAX_SILENT_STREAMS, 30, "the refusals")
        assert set(codes) == {"RESOURCE_EXHAUSTED"}
        assert len(codes) == 150 - caller_bounds.MAX_SILENT_STREAMS
        assert inflight() == 0
        with InferenceServerClient(api.address) as client:
            client.infer("echo", [_input([1.0], "FP32")], headers=api.headers("all"))
            client.infer("echo", [_input([1.0], "FP32")], headers=api.headers("some"))
        with Streaming(api) as stream:
            stream.send("counter", [1])
            assert stream.next().as_numpy("y").item() == 0
        # They end, like any stream on which nothing moves.
        wait_until(lambda: len(codes) == 150, 30, "the end of the others")
        assert codes.count("DEADLINE_EXCEEDED") == caller_bounds.MAX_SILENT_STREAMS


def test_a_refusal_of_silent_streams_says_what_to_do(api):
    with silent_streams(api, "slow", caller_bounds.MAX_SILENT_STREAMS):
        with grpc.insecure_channel(api.address) as channel:

            def refused() -> bool:
                call = channel.stream_stream(STREAM)(iter(()), metadata=_metadata(api, "slow"))
                with contextlib.suppress(grpc.RpcError):
                    next(call, None)
                error_info.update(code=call.code(), text=call.details())
                error_info.update(dict(call.trailing_metadata()))
                return call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

            error_info: dict = {}
            wait_until(refused, 30, "the cap")
        assert "nothing is under way" in error_info["text"]
        assert error_info["tidegate-code"] == "quota_exceeded"
        assert error_info["retry-after"] == "1"


def test_concurrency_counts_messages(api, inflight):
    """With a limit of 1, ten generations on one stream were once all admitted."""
    with Streaming(api, "some") as stream:
        for n in range(10):
            stream.send("counter", [50], request_id=str(n), enable_empty_final_response=True)
        responses, refused = [], []
        while len(responses) < 51:
            result = stream.next()
            (refused if isinstance(result, InferenceServerException) else responses).append(result)
        assert len(refused) == 9
        assert all("quota_exceeded" in str(error) for error in refused)
        assert [response.as_numpy("y").item() for response in responses[:50]] == list(range(50))
        # Its slot is free again.
        stream.send("counter", [1])
        assert stream.next().as_numpy("y").item() == 0


def test_permits_are_held_from_message_to_last_answer(api, inflight):
    with Streaming(api) as stream:
        time.sleep(0.1)
        assert inflight() == 0
        stream.send("counter", [80])
        assert stream.next().as_numpy("y").item() == 0
        assert inflight() == 1
        stream.send("sleeper", [0.2])  # behind a decoupled model: it waits, and takes no permit
        time.sleep(0.1)
        assert inflight() == 1
        for _ in range(80):
            stream.next()
        wait_until(lambda: inflight() == 0, 30, "both come back")
        # The stream is still open and works.
        stream.send("counter", [1])
        assert stream.next().as_numpy("y").item() == 0


def test_a_stream_has_a_window_of_decoupled_messages_too(api, inflight):
    with Streaming(api) as stream:
        for _ in range(50):
            stream.send("counter", [40])
        wait_until(lambda: inflight() == 32, 30, "the window fills")
        time.sleep(0.2)
        assert inflight() == 32
        stream.client.stop_stream(cancel_requests=True)
    wait_until(lambda: inflight() == 0, 30, "the permits come back")


def test_answers_find_their_messages(api):
    """The client's ids come back unchanged: empty, repeated and long ones; the final flag only
    where it was requested."""
    with Streaming(api) as stream:
        ids = ["", "same", "same", "x" * 300, "7", "0"]
        for index, identifier in enumerate(ids):
            stream.send("counter", [2], request_id=identifier)
            for n in range(2):
                result = stream.next()
                assert result.as_numpy("y").item() == n, index
                assert result.get_response().id == identifier
        stream.send("counter", [0], request_id="last", enable_empty_final_response=True)
        stream.next()
        last = stream.next().get_response()
        assert last.parameters["triton_final_response"].bool_param
        assert (last.id, len(last.outputs)) == ("last", 0)
        stream.send("counter", [-1], request_id="bad")
        error = stream.next()
        assert "upstream_error" in str(error)


def test_answers_of_models_with_one_answer_keep_their_order(api):
    with Streaming(api) as stream:
        for n in range(20):
            stream.send("sleeper", [0.05 if n % 2 else 0.0], request_id=str(n))
        ids = [stream.next().get_response().id for _ in range(20)]
        assert ids == [str(n) for n in range(20)]


@pytest.mark.parametrize("lockstep", [True, False])
def test_decoupled_and_other_models_on_one_stream(api, triton, inflight, lockstep):
    """Triton 2.51 itself dies within a second of both on one stream."""
    with Streaming(api) as stream:
        results = []
        for n in range(40):
            name, value = ("counter", 1) if n % 2 else ("sleeper", 0)
            stream.send(name, [value], request_id=str(n))
            if lockstep:
                results.append(stream.next().get_response().id)
        while len(results) < 40:
            results.append(stream.next().get_response().id)
    assert results == [str(n) for n in range(40)]
    assert triton.control.is_live()


def _errors(api, messages, tenant: str = "all"):
    """The raw responses to these messages."""
    with grpc.insecure_channel(api.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return list(stub.ModelStreamInfer(iter(messages), metadata=_metadata(api, tenant)))


def _message(model: str, value, **parameters):
    array = np.array(value, np.float32)
    request = service_pb2.ModelInferRequest(model_name=model, id="mine")
    request.inputs.add(name="x", datatype="FP32", shape=array.shape)
    request.raw_input_contents.append(array.tobytes())
    for key, value in parameters.items():
        field = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(request.parameters[key], field, value)
    return request


def test_a_stream_gives_the_codes_of_unary_calls(api, caplog):
    """Triton's refusal of a sequence that was not started was once 'the model failed: try
    again'."""
    caplog.set_level(logging.INFO, "gateway")
    with grpc.insecure_channel(api.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for message, code, status in (
            (_message("tally", [[1]], sequence_id=99), "invalid_request", "INVALID_ARGUMENT"),
            (_message("counter", [-1]), "upstream_error", "INTERNAL"),
            (_message("sleeper", [-1]), "upstream_error", "INTERNAL"),
            (_message("nonsense", [1]), "not_found", "NOT_FOUND"),
        ):
            (response,) = _errors(api, [message])
            assert response.infer_response.parameters["tidegate_code"].string_param == code
            assert response.infer_response.id == "mine"
            assert code in response.error_message
            assert "secret" not in response.error_message
            if message.model_name != "counter":
                with pytest.raises(grpc.RpcError) as caught:
                    stub.ModelInfer(message, metadata=_metadata(api))
                assert caught.value.code().name == status
                assert dict(caught.value.trailing_metadata())["tidegate-code"] == code
    # Triton's message goes to the operator, with the ids of request and message.
    warnings = [
        record.getMessage() for record in caplog.records if "START flag" in record.getMessage()
    ]
    assert any("'mine'" in warning for warning in warnings)
    assert len(warnings) == 2  # the message's and the unary call's


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("[request id: 0] inference request for sequence 7 to model 'tally' must specify the START "
         "flag on the first request of the sequence", "invalid_request"),
        ("timeout of the corresponding sequence has been expired", "invalid_request"),
        ("[request id: 3] inference request batch-size must be <= 8 for 'm'", "invalid_request"),
        ("[request id: 3] input byte size mismatch for input 'x' for model 'm'. Expected 4, got 8",
         "invalid_request"),
        ("invalid value type for 'sequence_start' parameter, expected bool_param.",
         "invalid_request"),
        ("Request for unknown model: 'm' is not found", "no_capacity"),
        ("[request id: 3] Exceeds maximum queue size", "no_capacity"),
        ("Server is stopping, scheduler for model has stopped accepting new inference requests",
         "no_capacity"),
        ("Request timeout expired", "deadline_exceeded"),
        ("in ensemble 'p', Failed to process the request(s) for model instance 'q_0', message: "
         "[tidegate:invalid_input] the text is too long", "invalid_request"),
        ("RuntimeError: secret path /root/model.bin", "upstream_error"),
        ("", "upstream_error"),
    ],
)  # fmt: skip
def test_tritons_messages_map_to_codes(text, code):
    fault = fault_of(text)
    assert fault.code == code
    assert "/root" not in fault.message
    if code == "invalid_request":
        assert "try again" not in fault.message


def test_a_message_keeps_its_own_timeout(api, inflight):
    """The client gets its error in time; work still running in Triton holds its permit."""
    with Streaming(api) as stream:
        stream.client.async_stream_infer(
            "sleeper", [_input([3.0])], timeout=200_000, request_id="late"
        )
        error = stream.next()
        assert "deadline_exceeded" in str(error)
        assert inflight() == 1  # the model has not answered yet
        wait_until(lambda: inflight() == 0, 30, "Triton's answer")
        stream.send("counter", [1])
        assert stream.next().as_numpy("y").item() == 0  # and not the late one


def test_rules_that_change_reach_an_open_stream(triton, tmp_path):
    home = tmp_path / "own"
    with RunningGrpcServer(triton, home) as server, Streaming(server, "some") as stream:
        stream.send("tally", [[1]], sequence_id=5, sequence_start=True)
        assert stream.next().as_numpy("y").item() == 1
        rules = home / "gateway.toml"
        atomic_write(rules, POLICY.replace('"echo", "tally"', '"echo"'))
        server.gateway.access_control.refresh()
        stream.send("tally", [[1]], sequence_id=5)
        assert "not_found" in str(stream.next())
        limit = '[[limits]]\nscope = "tenant"\nkind = "requests"\namount = 1\nwindow_s = 3600\n'
        atomic_write(rules, f"{POLICY}{limit}# end\n")  # complete: it applies at once
        server.gateway.access_control.refresh()
        stream.send("tally", [[1]], sequence_id=6, sequence_start=True)
        assert stream.next().as_numpy("y").item() == 1
        stream.send("tally", [[1]], sequence_id=6)
        assert "quota_exceeded" in str(stream.next())


def test_a_revoked_key_ends_its_streams(triton, tmp_path):
    """At the next message; a waiting stream is ended by ``AccessControl.watching``."""
    home = tmp_path / "own"
    with RunningGrpcServer(triton, home) as server, Streaming(server, "some") as stream:
        stream.send("tally", [[1]], sequence_id=5, sequence_start=True)
        assert stream.next().as_numpy("y").item() == 1
        (home / "keys.toml").unlink()
        server.gateway.access_control.refresh()
        stream.send("tally", [[1]], sequence_id=5)
        error = stream.next()
        assert error.status() == "StatusCode.UNAUTHENTICATED"


@pytest.mark.parametrize("busy", [True, False])
def test_a_right_that_ends_ends_the_stream_whether_it_moves_or_not(
    triton, tmp_path, monkeypatch, busy
):
    watched = {}

    @contextlib.contextmanager
    def watching(context, end, models, admissions):
        watched.update(end=end, models=models, admissions=admissions, principal=context.principal)
        yield

    with RunningGrpcServer(triton, tmp_path / "own", OPEN_POLICY) as server:
        monkeypatch.setattr(server.gateway.access_control, "watching", watching)
        with Streaming(server, "some") as stream:
            stream.send("sleeper", [3.0 if busy else 0.0])
            if not busy:
                stream.next()
            wait_until(lambda: "end" in watched, 30, "the stream is watched")
            expected = {"sleeper"} if busy else set()
            wait_until(lambda: server.run(_call(watched["models"])) == expected, 30, "the message")
            assert len(server.run(_call(watched["admissions"]))) == busy
            server.run(_call(watched["end"], Forbidden("the rules have changed")))
            error = stream.next()  # and not the model's answer
            assert error.status() == "StatusCode.PERMISSION_DENIED"
            assert "the rules have changed" in error.message()
        replicas = server.gateway.pool.replicas
        wait_until(lambda: all(replica.inflight == 0 for replica in replicas), 30, "the permits")


async def _call(function, *arguments):
    return function(*arguments)


def test_a_server_that_goes_releases_what_was_under_way(tmp_path):
    with contextlib.ExitStack() as stack:
        triton = stack.enter_context(serving(tmp_path / "models"))
        server = stack.enter_context(RunningGrpcServer(triton, tmp_path / "own"))
        with Streaming(server) as quiet, Streaming(server) as stream:
            quiet.send("counter", [1])
            quiet.next()
            for _ in range(3):
                stream.send("sleeper", [3.0])
            pool = server.gateway.pool
            wait_until(lambda: pool.replicas[0].inflight == 3, 30, "three under way")
            psutil.Process(triton.pid).kill()
            error = stream.next()
            assert error.status() in ("StatusCode.UNAVAILABLE", "StatusCode.INTERNAL")
            wait_until(lambda: pool.replicas[0].inflight == 0, 30, "the permits")
            # A stream with nothing in flight continues; its next message finds no server.
            assert quiet.answers.empty()
            quiet.send("counter", [1])
            assert quiet.next().status() == "StatusCode.UNAVAILABLE"


def test_unread_answers_hold_their_place(triton, tmp_path):
    """On a stream and of unary calls: until they are read they count against their caller."""
    message = service_pb2.ModelInferRequest(model_name="echo")
    message.inputs.add(name="FP32", datatype="FP32", shape=[1_000_000])
    message.raw_input_contents.append(bytes(4_000_000))
    options = [("grpc.max_receive_message_length", -1)]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            RunningGrpcServer(
                triton, tmp_path / "own", OPEN_POLICY, caller_buffered_bytes=3_000_000
            )
        )
        channel = stack.enter_context(grpc.insecure_channel(server.address, options))
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelStreamInfer(iter([message] * 5), metadata=_metadata(server, "all"))
        held = server.gateway.memory_budget

        def waits() -> bool:
            sizes = []
            for _ in range(5):
                sizes.append(held.total)
                time.sleep(0.1)
            return min(sizes) > 3_000_000

        wait_until(waits, 30, "an answer that waits")
        with InferenceServerClient(server.address) as client:
            with pytest.raises(InferenceServerException, match="read the answers"):
                client.infer("echo", [_input([1.0], "FP32")], headers=server.headers("all"))
            client.infer("echo", [_input([1.0], "FP32")], headers=server.headers("some"))
        responses = [response.error_message for response in call]
        assert len(responses) == 5
        assert any("read the answers" in text for text in responses) or not any(responses)
        wait_until(lambda: held.total == 0, 30, "all was read")


def _unread(api, count: int, tenant: str = "all"):
    """A stream whose client reads nothing; its answers have 200 kB each."""
    array = np.full(50_000, 0.5, np.float32)
    message = service_pb2.ModelInferRequest(model_name="echo")
    message.inputs.add(name="FP32", datatype="FP32", shape=array.shape)
    message.raw_input_contents.append(array.tobytes())
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
    channel = grpc.insecure_channel(api.address, options)
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    return channel, stub.ModelStreamInfer(iter([message] * count), metadata=_metadata(api, tenant))


def test_answers_that_are_not_read_hold_no_permits(api, inflight):
    """40 streams that read nothing once took all permits for 30 s."""
    held = api.gateway.memory_budget
    streams = [_unread(api, 5) for _ in range(10)]
    wait_until(lambda: held.total > 10 * 300_000, 30, "the answers")
    wait_until(lambda: inflight() == 0, 30, "the permits")
    for channel, call in streams:
        assert sum(1 for _ in call) == 5
        channel.close()
    wait_until(lambda: held.total == 0, 30, "all was read")


def test_a_stream_that_is_not_read_is_ended(triton, tmp_path):
    with RunningGrpcServer(triton, tmp_path / "own", send_timeout_s=1.0) as server:
        channel, call = _unread(server, 5)
        held = server.gateway.memory_budget
        wait_until(lambda: held.total, 30, "answers")
        wait_until(lambda: not held.total, 30, "the end")
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        channel.close()


def test_a_large_answer_gives_its_place_back_once_it_was_read(api, inflight):
    """At concurrency 1, sequential calls never find the previous one's slot still taken."""
    held = api.gateway.memory_budget
    with InferenceServerClient(api.address) as client:
        for _ in range(10):
            response = client.infer(
                "echo", [_input([0.5] * 500_000, "FP32")], headers=api.headers("some")
            )
            assert response.as_numpy("FP32_back").size == 500_000
    wait_until(lambda: held.total == 0, 30, "all was read")


def test_a_half_closed_stream_is_answered_to_its_end(api):
    messages = [_message("counter", [3]), _message("sleeper", [0.3])]
    responses = _errors(api, messages)
    assert len(responses) == 4
    assert _errors(api, []) == []


async def test_many_messages_of_many_tasks(api, inflight):
    """Attribution under load: every answer goes to the message that requested it."""
    from tritonclient.grpc import aio as triton_aio

    async def one(n: int) -> list[float]:
        async def requests():
            for m in range(10):
                yield {
                    "model_name": "echo",
                    "inputs": [_input([float(n * 100 + m)], "FP32")],
                    "request_id": f"{n}-{m}",
                }

        values = []
        async with triton_aio.InferenceServerClient(api.address) as client:
            async for result, error in client.stream_infer(requests(), headers=api.headers()):
                assert error is None
                value = result.as_numpy("FP32_back").item()
                assert result.get_response().id == f"{n}-{int(value) - n * 100}"
                values.append(value)
        return values

    responses = await asyncio.gather(*map(one, range(4)))
    for n, values in enumerate(responses):
        assert values == [n * 100 + m for m in range(10)]


def test_a_full_pool_refuses_a_message_not_the_stream(triton, tmp_path):
    with (
        RunningGrpcServer(triton, tmp_path / "own", max_inflight=1) as server,
        Streaming(server) as stream,
    ):
        stream.send("sleeper", [1.5])
        stream.send("sleeper", [0.0])
        results = [stream.next(), stream.next()]
        errors = [result for result in results if isinstance(result, InferenceServerException)]
        assert len(errors) == 1
        assert NoCapacity.code in str(errors[0])
        stream.send("sleeper", [0.0])
        assert stream.next().as_numpy("y") is not None
