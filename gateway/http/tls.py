"""TLS terminated by the gateway: one certificate for every listener, and client certificates.

Over HTTP a client certificate is optional. grpcio can only require one or not ask at all, so the
gRPC API has a port for each.
"""

import math
import ssl
from functools import lru_cache
from pathlib import Path
from typing import Any

import grpc

from gateway.http.bounded import BoundedProtocol
from gateway.identity.certificates import (
    ENDS_KEY,
    SCOPE_KEY,
    certificate_end,
    certificate_names,
)
from gateway.settings import Settings, SettingsError

_PEM = "x509_pem_cert"  # in gRPC's auth_context


class CertificateProtocol(BoundedProtocol):
    """Puts the names of the peer's certificate into each request's scope."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        der = tls.getpeercert(binary_form=True) if tls else None
        self._names = certificate_names(der) if der else ()
        self._ends = certificate_end(der) if der else math.inf

    def on_message_begin(self) -> None:
        super().on_message_begin()
        scope: Any = self.scope
        scope[SCOPE_KEY], scope[ENDS_KEY] = self._names, self._ends


class Tls:
    """Created once per process. Raises SettingsError, which names the unusable file and why."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._check()

    def http(self) -> dict[str, Any]:
        """Keyword arguments for ``uvicorn.Config``."""
        settings = self._settings
        options: dict[str, Any] = {
            "ssl_certfile": settings.tls_certificate_file,
            "ssl_keyfile": settings.tls_key_file,
        }
        if settings.tls_client_ca_file:
            options["http"] = CertificateProtocol
            options["ssl_ca_certs"] = settings.tls_client_ca_file
            options["ssl_cert_reqs"] = ssl.CERT_OPTIONAL
        return options

    def grpc(self, *, demanding: bool) -> object:
        """Credentials of a port that requires a client certificate, or asks for none."""
        settings = self._settings
        pair = tuple(map(_read, (settings.tls_key_file, settings.tls_certificate_file)))
        authority = _read(settings.tls_client_ca_file) if demanding else None
        return grpc.ssl_server_credentials([pair], authority, demanding)

    def _check(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        settings = self._settings
        certificate, key = settings.tls_certificate_file, settings.tls_key_file
        for name in ("tls_certificate_file", "tls_key_file", "tls_client_ca_file"):
            _check_readable(name, getattr(settings, name))
        try:
            context.load_cert_chain(certificate, key, password=_refuse_encrypted)
        except (ssl.SSLError, ValueError) as error:
            raise SettingsError(
                f"TIDEGATE_TLS_CERTIFICATE_FILE={certificate} and TIDEGATE_TLS_KEY_FILE={key} "
                f"cannot be used: use a PEM certificate and its unencrypted key ({_reason(error)})"
            ) from None
        try:
            if settings.tls_client_ca_file:
                context.load_verify_locations(settings.tls_client_ca_file)
        except ssl.SSLError as error:
            raise SettingsError(
                f"TIDEGATE_TLS_CLIENT_CA_FILE={settings.tls_client_ca_file} cannot be used: use "
                f"PEM certificates of authorities ({_reason(error)})"
            ) from None


def shown_to_grpc(call: grpc.aio.ServicerContext) -> dict[str, Any]:
    """The scope entries for the client certificate of a gRPC call."""
    certificates = call.auth_context().get(_PEM)
    if not certificates:
        return {SCOPE_KEY: ()}
    names, ends = _read_certificate(bytes(certificates[0]))
    return {SCOPE_KEY: names, ENDS_KEY: ends}


@lru_cache(1024)
def _read_certificate(pem: bytes) -> tuple[tuple[str, ...], float]:
    der = ssl.PEM_cert_to_DER_cert(pem.decode())
    return certificate_names(der), certificate_end(der)


def _check_readable(name: str, path: str) -> None:
    try:
        if path:
            _read(path)
    except OSError as error:
        raise SettingsError(
            f"TIDEGATE_{name.upper()}={path} cannot be read: {error.strerror}"
        ) from None


def _read(path: str) -> bytes:
    return Path(path).read_bytes()


def _refuse_encrypted() -> str:
    raise ValueError("the key is encrypted")


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or str(error)
