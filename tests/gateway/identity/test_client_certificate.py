"""Client certificates created with openssl, presented to a real uvicorn; and a trusted proxy."""

import asyncio
import json
import ssl
import subprocess

import httpx
import pytest

from gateway.errors import Unauthenticated
from gateway.http.bounded import BoundedProtocol
from gateway.http.tls import CertificateProtocol
from gateway.identity.callers import Callers
from gateway.identity.certificates import certificate_names
from gateway.identity.keys import KeyRing
from gateway.policy.gateway_toml import parse_rules
from tests.gateway.served import served
from tidegate.app.key_store import KeyStore

RULES = """
[certificates."CN=batch,O=Acme\\\\, Inc.,C=DE"]
roles = ["user"]
scopes = ["infer"]
[certificates."URI:spiffe://acme/worker"]
models = ["text_*"]
[proxy]
trusted = ["127.0.0.1"]
"""
BATCH = "CN=batch,O=Acme\\, Inc.,C=DE"


def _openssl(folder, *arguments):
    return subprocess.run(
        ["openssl", *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    """ca.pem, other-ca.pem, and for each name NAME.pem with NAME.key; all elliptic, all valid."""
    folder = tmp_path_factory.mktemp("pki")
    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    subjects = {
        "server": ("ca", "/CN=localhost", "DNS:localhost,IP:127.0.0.1"),
        "batch": ("ca", "/C=DE/O=Acme, Inc./CN=batch", "DNS:batch.acme"),
        "worker": ("ca", "/CN=anything", "URI:spiffe://acme/worker"),
        "unlisted": ("ca", "/CN=unlisted", "DNS:unlisted"),
        "forged": ("other-ca", "/C=DE/O=Acme, Inc./CN=batch", "DNS:batch.acme"),
    }
    for name in ("ca", "other-ca"):
        _openssl(
            folder, *new, "-x509", "-subj", f"/CN={name}",
            "-keyout", f"{name}.key", "-out", f"{name}.pem",
        )  # fmt: skip
    for name, (signer, subject, san) in subjects.items():
        _openssl(
            folder, *new, "-x509", "-subj", subject, "-addext", f"subjectAltName={san}",
            "-addext", "basicConstraints=critical,CA:FALSE", "-CA", f"{signer}.pem",
            "-CAkey", f"{signer}.key", "-keyout", f"{name}.key", "-out", f"{name}.pem",
        )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def key_and_callers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    _, key = KeyStore(folder / "keys.toml", folder / "pepper").create("app")
    ring = KeyRing(folder / "keys.toml", folder / "pepper")
    ring.refresh()
    return key, Callers(ring, parse_rules(RULES, "gateway.toml"))


def _app(callers):
    async def app(scope, receive, send):
        try:
            authorization = dict(scope["headers"]).get(b"authorization")
            principal = await callers.identify(scope, authorization)
            status, body = 200, principal.id
        except Unauthenticated as error:
            status, body = 401, error.message
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})

    return app


def _serving(app, **options):
    return served(app, loop="uvloop", proxy_headers=False, **options)


@pytest.fixture(scope="module")
def tls(pki, key_and_callers):
    options = {
        "http": CertificateProtocol,
        "ssl_certfile": str(pki / "server.pem"),
        "ssl_keyfile": str(pki / "server.key"),
        "ssl_ca_certs": str(pki / "ca.pem"),
        "ssl_cert_reqs": ssl.CERT_REQUIRED,
    }
    with _serving(_app(key_and_callers[1]), **options) as port:
        yield f"https://localhost:{port}/"


def _ask(tls, pki, name, **headers):
    context = ssl.create_default_context(cafile=str(pki / "ca.pem"))
    if name:
        context.load_cert_chain(pki / f"{name}.pem", pki / f"{name}.key")
    with httpx.Client(verify=context) as client:
        return [client.get(tls, headers=headers) for _ in range(2)][-1]  # on one connection


@pytest.mark.parametrize(
    ("name", "principal"),
    [("batch", f"cert:{BATCH}"), ("worker", "cert:URI:spiffe://acme/worker")],
)
def test_a_listed_certificate_is_its_principal(tls, pki, name, principal):
    response = _ask(tls, pki, name)
    assert (response.status_code, response.json()) == (200, principal)


def test_an_unlisted_certificate_is_nobody(tls, pki):
    assert _ask(tls, pki, "unlisted").status_code == 401


@pytest.mark.parametrize("name", [None, "forged"])
def test_another_authority_or_no_certificate_does_not_reach_http(tls, pki, name):
    with pytest.raises(httpx.TransportError):
        _ask(tls, pki, name)


def test_an_authorization_header_decides_alone(tls, pki, key_and_callers):
    good = _ask(tls, pki, "batch", Authorization=f"Bearer {key_and_callers[0]}")
    assert good.status_code == 200
    assert not good.json().startswith("cert:")
    assert _ask(tls, pki, "batch", Authorization="Bearer wrong").status_code == 401


def test_names_are_written_as_openssl_and_nginx_write_them(pki):
    """nginx's $ssl_client_s_dn is openssl's RFC 2253."""
    for name in ("batch", "worker"):
        arguments = ["-in", f"{name}.pem", "-noout", "-subject", "-nameopt", "RFC2253"]
        subject = _openssl(pki, "x509", *arguments)
        der = ssl.PEM_cert_to_DER_cert((pki / f"{name}.pem").read_text())
        assert certificate_names(der)[0] == subject.removeprefix("subject=").strip()
    assert certificate_names(b"no certificate") == ()


def test_a_trusted_proxy_may_vouch_and_nobody_else(key_and_callers):
    headers = {"x-client-cert-subject": BATCH}
    with _serving(_app(key_and_callers[1]), http=BoundedProtocol) as port:
        url = f"http://127.0.0.1:{port}/"
        assert httpx.get(url, headers=headers).json() == f"cert:{BATCH}"
        # what the client claims about its origin changes nothing
        elsewhere = {**headers, "x-forwarded-for": "203.0.113.9"}
        assert httpx.get(url, headers=elsewhere).json() == f"cert:{BATCH}"
        assert httpx.get(url, headers={"x-client-cert-subject": "CN=x"}).status_code == 401
        twice = [("x-client-cert-subject", "CN=x"), ("x-client-cert-subject", BATCH)]
        assert httpx.get(url, headers=twice).status_code == 401


@pytest.mark.parametrize(
    ("client", "trusted"),
    [
        (("127.0.0.1", 1), True),
        (("::ffff:127.0.0.1", 1), True),
        (("127.0.0.2", 1), False),
        (("203.0.113.9", 1), False),
        (("::1", 1), False),
        (("not an address", 1), False),
        (None, False),
    ],
)
def test_the_header_of_anybody_else_is_as_if_it_were_not_there(key_and_callers, client, trusted):
    scope = {"client": client, "headers": [(b"x-client-cert-subject", BATCH.encode())]}
    identification = key_and_callers[1].identify(scope, None)
    if trusted:
        assert asyncio.run(identification).id == f"cert:{BATCH}"
    else:
        with pytest.raises(Unauthenticated):
            asyncio.run(identification)
