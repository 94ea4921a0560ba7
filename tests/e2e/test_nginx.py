"""deploy/nginx: Debian's nginx in front of a real Triton, with the gateway authorizing."""

import re
import shutil
import subprocess
import threading
import time

import grpc
import numpy as np
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from gateway.api.grpc.nginx import ACTIONS, NginxApi
from gateway.http.handler import Endpoint
from gateway.middleware import Middleware
from serving.triton.ports import free_ports, is_taken
from tests.e2e.grpc_models import RunningGrpcServer, serving
from tests.running import ROOT, wait_until

TEMPLATE = ROOT / "deploy" / "nginx" / "tidegate.conf.template"


def _routes(gateway):
    return [Route("/internal/decide", Endpoint(NginxApi(gateway).decide))]


class DecidingGateway(RunningGrpcServer):
    """A gateway whose HTTP listener has only the decision route."""

    async def _open(self) -> None:
        await super()._open()
        routes = _routes(self.gateway)
        edge = Middleware(Starlette(routes=routes), self.gateway, routes)
        self.http_port = free_ports(1)[0]
        config = uvicorn.Config(edge, port=self.http_port, log_config=None, lifespan="off")
        self._uvicorn = uvicorn.Server(config)
        self._uvicorn.config.load()
        self._serving = threading.Thread(target=self._uvicorn.run)
        self._serving.start()

    async def _close(self) -> None:
        self._uvicorn.should_exit = True
        await super()._close()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._serving.join(10)


@pytest.fixture(scope="module")
def triton(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("nginx")) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(triton, tmp_path_factory):
    with DecidingGateway(triton, tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.fixture(scope="module")
def nginx(triton, gateway, tmp_path_factory):
    """nginx's address."""
    if not shutil.which("nginx"):
        subprocess.run(["apt-get", "install", "-y", "-qq", "nginx-light"], check=True, timeout=300)
    run = tmp_path_factory.mktemp("run")
    port = free_ports(1)[0]
    values = {
        "LISTEN": f"127.0.0.1:{port}",
        "GATEWAY": f"127.0.0.1:{gateway.http_port}",
        "TRITON": triton.control.address,
        "BODY_LIMIT": "1m",
        "DEADLINE": "3s",
        "RUN": str(run),
    }
    filled = re.sub(r"\$\{TIDEGATE_(\w+)\}", lambda name: values[name[1]], TEMPLATE.read_text())
    (run / "nginx.conf").write_text(filled)
    command = ["nginx", "-p", str(run), "-c", str(run / "nginx.conf"), "-g", "daemon off;"]
    process = subprocess.Popen([*command, "-e", str(run / "error.log")])
    try:
        wait_until(lambda: is_taken("127.0.0.1", port), 30, "nginx listens")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(60) == 0, (run / "error.log").read_text()


@pytest.fixture(scope="module")
def client(nginx):
    with InferenceServerClient(nginx) as triton_client:
        yield triton_client


def _input(value, name: str = "x") -> InferInput:
    array = np.array(value, np.float32)
    tensor = InferInput(name, list(array.shape), "FP32")
    tensor.set_data_from_numpy(array)
    return tensor


def _status(call) -> str:
    with pytest.raises(InferenceServerException) as caught:
        call()
    return caught.value.status().removeprefix("StatusCode.")


def test_a_stock_client(client, gateway):
    headers = gateway.headers()
    assert client.is_server_live(headers=headers)
    assert client.get_model_metadata("echo", headers=headers).name == "echo"
    response = client.infer("echo", [_input([1.5] * 1000, "FP32")], headers=headers)
    assert response.as_numpy("FP32_back").tolist() == [1.5] * 1000


def test_streaming(nginx, gateway):
    values = []
    with InferenceServerClient(nginx) as client:
        client.start_stream(
            lambda result, error: values.append(error or result), headers=gateway.headers()
        )
        client.async_stream_infer("counter", [_input([3])])
        wait_until(lambda: len(values) == 3, 30, "three answers")
    assert [response.as_numpy("y").item() for response in values] == [0, 1, 2]


@pytest.mark.parametrize("authorization", [None, "Bearer nonsense"])
def test_without_an_identity(client, authorization):
    headers = {"authorization": authorization} if authorization else None
    assert _status(lambda: client.is_server_live(headers=headers)) == "UNAUTHENTICATED"
    infer = lambda: client.infer("echo", [_input([1], "FP32")], headers=headers)  # noqa: E731
    assert _status(infer) == "UNAUTHENTICATED"


def test_a_caller_with_only_some_models_is_refused(client, gateway):
    """nginx does not see which model is called."""
    infer = lambda: client.infer("echo", [_input([1], "FP32")], headers=gateway.headers("some"))  # noqa: E731
    with pytest.raises(InferenceServerException, match="every model: use the gateway's gRPC port"):
        infer()
    assert _status(infer) == "PERMISSION_DENIED"


def test_a_read_only_caller(client, gateway):
    reader = gateway.headers("reader")
    assert client.get_model_metadata("echo", headers=reader).name == "echo"
    infer = lambda: client.infer("echo", [_input([1], "FP32")], headers=reader)  # noqa: E731
    assert _status(infer) == "PERMISSION_DENIED"


def test_methods_that_are_not_offered(client, gateway):
    headers = gateway.headers()
    for call in (
        client.get_model_repository_index,
        client.get_trace_settings,
        client.get_log_settings,
        client.get_system_shared_memory_status,
        client.get_cuda_shared_memory_status,
    ):
        assert _status(lambda call=call: call(headers=headers)) == "UNIMPLEMENTED"
    assert _status(lambda: client.unload_model("echo", headers=headers)) == "UNIMPLEMENTED"


def test_nginx_offers_what_the_gateway_decides_about():
    named = re.search(r"GRPCInferenceService/\(([\w|]+)\)", TEMPLATE.read_text())
    assert named
    offered = {*named[1].split("|"), "ModelStreamInfer"}
    assert offered == {path.rpartition("/")[2] for path in ACTIONS}


def test_a_quota(nginx, gateway):
    with grpc.insecure_channel(nginx) as channel, InferenceServerClient(nginx) as client:
        slow = gateway.headers("slow")
        for _ in range(2):
            client.infer("echo", [_input([1], "FP32")], headers=slow)
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", metadata=tuple(slow.items()))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "is used up" in caught.value.details()
    metadata = dict((*caught.value.initial_metadata(), *caught.value.trailing_metadata()))
    assert metadata["tidegate-code"] == "quota_exceeded"
    assert 20 <= int(metadata["retry-after"]) <= 30


def test_a_message_over_the_limit(client, gateway):
    tensors, headers = [_input([0.5] * 300_000, "FP32")], gateway.headers()
    assert _status(lambda: client.infer("echo", tensors, headers=headers)) == "RESOURCE_EXHAUSTED"


def _cancelled(client, gateway) -> float:
    response = client.infer("sleeper", [_input([0])], headers=gateway.headers())
    return response.as_numpy("y").item()


def test_cancel_and_deadline_reach_triton(client, gateway):
    before = _cancelled(client, gateway)
    infer = lambda **how: client.infer("sleeper", [_input([9])], headers=gateway.headers(), **how)  # noqa: E731
    assert _status(lambda: infer(client_timeout=1.0)) == "DEADLINE_EXCEEDED"
    wait_until(lambda: _cancelled(client, gateway) == before + 1, 30, "the cancel in Triton")
    assert _status(infer) == "DEADLINE_EXCEEDED"
    wait_until(lambda: _cancelled(client, gateway) == before + 2, 30, "the cancel in Triton")


def test_metadata_that_kills_triton_does_not_reach_it(client, gateway):
    """With triton_grpc_error, Triton 2.51 dies when a decoupled model fails."""
    errors = []
    with InferenceServerClient(client._channel._channel.target().decode()) as streaming:
        headers = {**gateway.headers(), "triton_grpc_error": "true"}
        streaming.start_stream(lambda result, error: errors.append(error), headers=headers)
        streaming.async_stream_infer("counter", [_input([-1])])
        wait_until(lambda: errors, 30, "the error")
    time.sleep(0.5)
    assert client.is_server_live(headers=gateway.headers())


def test_the_decision_route_is_for_this_machine_only(gateway):
    scope = {"type": "http", "client": ("192.0.2.1", 5)}
    assert _decided(gateway, scope) == 404
    assert _decided(gateway, {**scope, "client": ("127.0.0.1", 5)}) == 204


def _decided(gateway, scope) -> int:
    headers = {
        **gateway.headers(),
        "x-tidegate-method": "/inference.GRPCInferenceService/ServerLive",
    }
    sent = []

    async def call():
        routes = _routes(gateway.gateway)
        edge = Middleware(Starlette(routes=routes), gateway.gateway, routes)
        whole = {
            "method": "GET",
            "path": "/internal/decide",
            "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
            **scope,
        }

        async def send(message):
            sent.append(message)

        await edge(whole, None, send)

    gateway.run(call())
    return sent[0]["status"]
