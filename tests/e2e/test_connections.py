"""More silent connections than the gateway has file descriptors.

``python -m gateway`` runs as in production, but without a Triton: connections come before models.
"""

import contextlib
import os
import resource
import signal
import socket
import ssl
import subprocess
import sys

import httpx
import psutil
import pytest

from serving.triton.ports import free_ports
from tests.gateway.authority import Authority
from tests.running import wait_until

DESCRIPTORS, SILENT = 300, 400


@contextlib.contextmanager
def _gateway(folder, limits, **variables):
    port, admin = free_ports(2)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    state = {
        "TIDEGATE_GATEWAY_PORT": str(port),
        "TIDEGATE_ADMIN_PORT": str(admin),
        "TIDEGATE_STATE_FOLDER": str(folder),
        "TIDEGATE_KEYS_FILE": str(folder / "keys.toml"),
        "TIDEGATE_PEPPER_FILE": str(folder / "pepper"),
        "TIDEGATE_POLICY_FILE": str(folder / "gateway.toml"),
        "TIDEGATE_REPLICAS": f"127.0.0.1:{free_ports(1)[0]}",
    }
    with (folder / "gateway.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway"],
            env={**kept, **state, **variables},
            stdout=log,
            stderr=log,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits),
        )
    try:
        with httpx.Client(base_url=_url(port, folder), verify=_verify(folder)) as client:
            wait_until(lambda: _is_answering(client), 30, "the gateway")
            yield process, client, port
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)


def _url(port, folder):
    return f"http{'s' * (folder / 'ca.pem').exists()}://localhost:{port}"


def _verify(folder):
    authority = folder / "ca.pem"
    return ssl.create_default_context(cafile=str(authority)) if authority.exists() else True


def _is_answering(client):
    try:
        return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


def _open(port, begin):
    with contextlib.suppress(OSError):
        connection = socket.create_connection(("127.0.0.1", port), timeout=20)
        if begin:
            connection.sendall(begin)
        return connection
    return None


@pytest.fixture(params=["http", "tls"])
def secured(request, tmp_path):
    """The environment of a gateway without and with TLS."""
    if request.param == "http":
        return {}
    authority = Authority(tmp_path)
    certificate, key = authority.sign("gateway")
    return {
        "TIDEGATE_TLS_CERTIFICATE_FILE": str(certificate),
        "TIDEGATE_TLS_KEY_FILE": str(key),
    }


@pytest.mark.parametrize(
    "begin", [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n"], ids=["silent", "half a head"]
)
def test_silent_connections_never_block_http(tmp_path, secured, begin):
    with _gateway(tmp_path, (DESCRIPTORS, DESCRIPTORS), **secured) as (process, _, port):
        flood = [_open(port, begin) for _ in range(SILENT)]
        try:
            for _ in range(20):
                flood += [_open(port, begin) for _ in range(20)]  # the flood continues
                with httpx.Client(verify=_verify(tmp_path)) as new:
                    response = new.get(f"{_url(port, tmp_path)}/healthz", timeout=30)
                assert response.status_code == 200
            assert psutil.Process(process.pid).num_fds() < DESCRIPTORS - 16
        finally:
            for connection in filter(None, flood):
                connection.close()
    assert "Traceback" not in (tmp_path / "gateway.log").read_text()


def test_idle_connections_are_closed_and_busy_ones_are_not(tmp_path):
    get = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with _gateway(tmp_path, (DESCRIPTORS, DESCRIPTORS)) as (process, client, port):
        idle, silent, responses = [], [], []
        try:
            while len(idle) < SILENT:  # never more at once than fit
                idle += [_open(port, get) for _ in range(20)]
                responses += [_read_answer(connection) for connection in idle[-20:]]
            assert all(response.startswith(b"HTTP/1.1 200 OK") for response in responses)
            closing = [b"connection: close" in response for response in responses]
            assert not closing[0]  # descriptors were free
            # Closed by the gateway, as descriptors were scarce.
            assert sum(closing) >= SILENT - DESCRIPTORS
            for _ in range(20):
                silent += [_open(port, b"") for _ in range(SILENT // 20)]
                assert client.get("/healthz").status_code == 200
            rests = [_read_rest(connection) for connection in idle]
            assert rests == [b""] * SILENT  # closed to make room
            assert psutil.Process(process.pid).num_fds() < DESCRIPTORS - 16
        finally:
            for connection in filter(None, idle + silent):
                connection.close()


def _read_answer(connection):
    """The answer on a connection, to the end of its body."""
    connection.settimeout(20)
    received = b""
    while not received.endswith(b'{"status":"ok"}'):
        more = connection.recv(4096)
        assert more, received
        received += more
    return received


def _read_rest(connection):
    """The bytes that arrive on a connection until it is closed."""
    with contextlib.suppress(ConnectionResetError):
        return connection.recv(4096)
    return b""


def test_clients_that_do_not_read_never_block_http(tmp_path):
    path = b"/static-offline-docs/swagger-ui-bundle.js"
    get = b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    with _gateway(tmp_path, (DESCRIPTORS, DESCRIPTORS)) as (process, _, port):
        flood = []
        try:
            for _ in range(10):
                flood += [_open(port, get * 3) for _ in range(40)]
                with httpx.Client() as new:
                    assert new.get(f"{_url(port, tmp_path)}/healthz", timeout=20).status_code == 200
            assert psutil.Process(process.pid).num_fds() < DESCRIPTORS - 16
        finally:
            for connection in filter(None, flood):
                connection.close()
    assert "Traceback" not in (tmp_path / "gateway.log").read_text()


def test_the_soft_limit_of_descriptors_is_raised(tmp_path):
    hard = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    with _gateway(tmp_path, (256, hard)) as (process, _, _):
        assert psutil.Process(process.pid).rlimit(psutil.RLIMIT_NOFILE) == (hard, hard)


def test_a_silent_tls_client_is_cut_off_in_time(tmp_path):
    authority = Authority(tmp_path)
    certificate, key = authority.sign("gateway")
    secured = {
        "TIDEGATE_TLS_CERTIFICATE_FILE": str(certificate),
        "TIDEGATE_TLS_KEY_FILE": str(key),
    }
    with _gateway(tmp_path, (DESCRIPTORS, DESCRIPTORS), **secured) as (_, _, port):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.settimeout(30)  # a handshake has 10 s; asyncio's own bound is 60 s
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1000) == b""
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.settimeout(20)
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")  # not TLS
            with contextlib.suppress(ConnectionResetError):
                assert b"200 OK" not in connection.recv(1000)
    assert "Traceback" not in (tmp_path / "gateway.log").read_text()
