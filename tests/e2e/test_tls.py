"""The gateway terminates TLS itself: certificates, keys and unknown clients at both APIs.

``python -m gateway`` runs as in production, but without a Triton: admission is decided before it.
"""

import os
import shutil
import signal
import ssl
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tritonclient.grpc import InferenceServerClient

from gateway.http.tls import Tls
from gateway.settings import Settings, SettingsError
from serving.triton.ports import free_ports
from tests.gateway.authority import Authority, private
from tests.running import wait_until
from tidegate.app.key_store import KeyStore

POLICY = """
[certificates."CN=batch,O=Acme"]
scopes = ["read"]
[certificates."URI:spiffe://acme/worker"]
[certificates."CN=operator,O=Acme"]
roles = ["admin"]
"""


@dataclass
class Secured:
    """A gateway with TLS, and its clients' files."""

    folder: Path
    key: str
    http: int
    grpc: int
    certificate: int
    admin: int

    def get(self, path="/v2", who=None, port=0, **headers):
        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        if who:
            context.load_cert_chain(self.folder / f"{who}.pem", self.folder / f"{who}.key")
        with httpx.Client(verify=context) as client:
            return client.get(f"https://localhost:{port or self.http}{path}", headers=headers)

    def metadata(self, port, who=None, **headers) -> str:
        """The server's name, or the status of the refusal."""
        names = (f"{who}.key", f"{who}.pem") if who else ()
        files = [(self.folder / name).read_bytes() for name in ("ca.pem", *names)]
        credentials = grpc.ssl_channel_credentials(*files)
        with InferenceServerClient(f"localhost:{port}", creds=credentials, ssl=True) as client:
            try:
                return client.get_server_metadata(headers=headers, client_timeout=20).name
            except Exception as error:
                return error.status().removeprefix("StatusCode.")


@pytest.fixture(scope="module")
def secured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority(folder)
    for name in ("server", "batch", "operator", "unlisted"):
        authority.sign(name)
    authority.sign("worker", uri="spiffe://acme/worker")
    forger = Authority(folder, "forger")
    forger.sign("foreign")
    for extension in ("pem", "key"):  # signed by another authority for the same name
        shutil.copy(folder / f"batch.{extension}", folder / f"kept.{extension}")
    forger.sign("batch")
    for extension in ("pem", "key"):
        (folder / f"batch.{extension}").rename(folder / f"forged.{extension}")
        (folder / f"kept.{extension}").rename(folder / f"batch.{extension}")
    (folder / "gateway.toml").write_text(POLICY)
    _, key = KeyStore(folder / "keys.toml", folder / "pepper").create("app")
    gateway = Secured(folder, key, *free_ports(4))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway"],
            env={**os.environ, **_environment(gateway)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: _is_up(gateway, process), 30, "the gateway answers")
        yield gateway
    finally:
        process.terminate()
        ended = process.wait(60)
    assert ended in (0, -signal.SIGTERM), (folder / "log").read_text()


def _environment(secured):
    folder = secured.folder
    return {
        "TIDEGATE_GATEWAY_PORT": str(secured.http),
        "TIDEGATE_GRPC_PORT": str(secured.grpc),
        "TIDEGATE_GRPC_CERTIFICATE_PORT": str(secured.certificate),
        "TIDEGATE_ADMIN_PORT": str(secured.admin),
        "TIDEGATE_REPLICAS": "127.0.0.1:1",
        "TIDEGATE_STATE_FOLDER": str(folder),
        "TIDEGATE_KEYS_FILE": str(folder / "keys.toml"),
        "TIDEGATE_PEPPER_FILE": str(folder / "pepper"),
        "TIDEGATE_POLICY_FILE": str(folder / "gateway.toml"),
        "TIDEGATE_TLS_CERTIFICATE_FILE": str(folder / "server.pem"),
        "TIDEGATE_TLS_KEY_FILE": str(folder / "server.key"),
        "TIDEGATE_TLS_CLIENT_CA_FILE": str(folder / "ca.pem"),
    }


def _is_up(secured, process) -> bool:
    assert process.poll() is None, (secured.folder / "log").read_text()
    try:
        return secured.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("who", ["batch", "worker"])
def test_a_listed_certificate_is_accepted_by_both_apis(secured, who):
    assert secured.get(who=who).json()["name"] == "triton"
    assert secured.metadata(secured.certificate, who) == "triton"


def test_without_a_certificate(secured):
    assert secured.get().status_code == 401
    assert secured.metadata(secured.grpc) == "UNAUTHENTICATED"
    assert secured.metadata(secured.certificate) == "UNAVAILABLE"  # the handshake fails


@pytest.mark.parametrize("who", ["foreign", "forged"])
def test_a_certificate_of_another_authority(secured, who):
    with pytest.raises(httpx.TransportError):
        secured.get(who=who)
    assert secured.metadata(secured.certificate, who) == "UNAVAILABLE"


def test_an_unlisted_certificate_is_refused(secured):
    assert secured.get(who="unlisted").status_code == 401
    assert secured.metadata(secured.certificate, "unlisted") == "UNAUTHENTICATED"


def test_a_key_instead_of_a_certificate(secured):
    good = {"authorization": f"Bearer {secured.key}"}
    assert secured.get(**good).status_code == 200
    assert secured.metadata(secured.grpc, **good) == "triton"


def test_a_key_takes_precedence_over_a_certificate(secured):
    bad = {"authorization": "Bearer nonsense"}
    assert secured.get(who="batch", **bad).status_code == 401
    assert secured.metadata(secured.certificate, "batch", **bad) == "UNAUTHENTICATED"
    good = {"authorization": f"Bearer {secured.key}"}
    assert secured.metadata(secured.certificate, "unlisted", **good) == "triton"


def test_a_certificates_rights_are_enforced_by_both_apis(secured):
    body = {"inputs": []}
    context = ssl.create_default_context(cafile=str(secured.folder / "ca.pem"))
    context.load_cert_chain(secured.folder / "batch.pem", secured.folder / "batch.key")
    with httpx.Client(verify=context) as client:
        url = f"https://localhost:{secured.http}/v2/models/any/infer"
        assert client.post(url, json=body).status_code == 403
    assert secured.get("/metrics", "batch", secured.admin).status_code == 403
    assert secured.get("/metrics", "operator", secured.admin).status_code == 200


@pytest.mark.parametrize("port", ["http", "admin", "grpc", "certificate"])
def test_plain_text_is_refused(secured, port):
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{getattr(secured, port)}/healthz", timeout=20)


def test_a_header_names_nobody(secured):
    """Only a trusted proxy may set it."""
    header = {"x-client-cert-subject": "CN=operator,O=Acme"}
    assert secured.get(**header).status_code == 401
    assert secured.metadata(secured.grpc, **header) == "UNAUTHENTICATED"


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faulty")
    authority = Authority(folder)
    authority.sign("server")
    authority.sign("other")
    locked = private(ec.generate_private_key(ec.SECP256R1()), b"secret")
    (folder / "locked.key").write_bytes(locked)
    (folder / "nonsense.pem").write_text("nonsense")
    return folder


@pytest.mark.parametrize(
    ("certificate", "key", "authority", "words"),
    [
        ("missing.pem", "server.key", "", "TLS_CERTIFICATE_FILE=.*missing.pem cannot be read: No"),
        ("server.pem", "missing.key", "", "TLS_KEY_FILE=.*missing.key cannot be read: No such"),
        ("server.pem", "other.key", "", "and its unencrypted key .*MISMATCH"),
        ("server.pem", "locked.key", "", "the key is encrypted"),
        ("nonsense.pem", "server.key", "", "use a PEM certificate"),
        (
            "server.pem",
            "server.key",
            "nonsense.pem",
            "TLS_CLIENT_CA_FILE=.*PEM certificates of authorities",
        ),
        ("server.pem", "server.key", "missing.pem", "TLS_CLIENT_CA_FILE=.*cannot be read"),
    ],
)
def test_an_unusable_file_is_named(faulty, certificate, key, authority, words):
    settings = Settings(
        tls_certificate_file=str(faulty / certificate),
        tls_key_file=str(faulty / key),
        tls_client_ca_file=str(faulty / authority) if authority else "",
    )
    with pytest.raises(SettingsError, match=words) as caught:
        Tls(settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"TLS_KEY_FILE": "x"}, "both or neither"),
        ({"TLS_CERTIFICATE_FILE": "x"}, "both or neither"),
        ({"TLS_CLIENT_CA_FILE": "x"}, "needs TIDEGATE_TLS_CERTIFICATE_FILE"),
        ({"GRPC_CERTIFICATE_PORT": "1"}, "needs TIDEGATE_GRPC_PORT"),
    ],
)
def test_settings_that_do_not_go_together(variables, words):
    with pytest.raises(SettingsError, match=words):
        Settings.read({f"TIDEGATE_{name}": value for name, value in variables.items()})


@pytest.mark.parametrize("module", ["gateway", "tidegate"])
def test_a_start_with_bad_files_is_one_line(faulty, tmp_path, module):
    environment = {
        **os.environ,
        "TIDEGATE_HOME": str(tmp_path),
        "TIDEGATE_TLS_CERTIFICATE_FILE": str(faulty / "server.pem"),
        "TIDEGATE_TLS_KEY_FILE": str(faulty / "other.key"),
    }
    command = [sys.executable, "-m", module, *(["up"] if module == "tidegate" else [])]
    run = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode != 0
    lines = run.stderr.strip().splitlines()
    assert len(lines) == 1, run.stderr
    assert "other.key" in lines[0]


def test_up_serves_tls(faulty, tmp_path):
    """``up`` finds its own gateway ready, whatever the name in the certificate."""
    from tests.echoing import add_models
    from tests.running import launch, stop, wait_ready

    add_models(tmp_path)
    (certificate_port,) = free_ports(1)
    running = launch(
        tmp_path,
        "identity_fp32",
        f"--tls-certificate-file={faulty / 'server.pem'}",
        f"--tls-key-file={faulty / 'server.key'}",
        f"--tls-client-ca-file={faulty / 'ca.pem'}",
        f"--grpc-certificate-port={certificate_port}",
    )
    try:
        wait_ready(running)
        context = ssl.create_default_context(cafile=str(faulty / "ca.pem"))
        url = f"https://localhost:{running.gateway_port}/v2/models/identity_fp32"
        assert httpx.get(url, headers=running.headers, verify=context).status_code == 200
        assert f"https://127.0.0.1:{running.gateway_port}" in running.output
    finally:
        assert stop(running) == 0, running.output
