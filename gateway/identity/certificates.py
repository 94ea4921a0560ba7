"""Client certificates: shown to the gateway itself, or to a proxy that vouches for them.

``CertificateProtocol`` is for a gateway that ends TLS itself (``gateway.http.tls``: the chain is
verified before HTTP begins). A certificate is known by its subject as RFC 4514 writes it
(``CN=batch,O=Acme``) and by each ``URI:...`` and ``DNS:...`` of its SAN.
"""

import math
import time
from dataclasses import replace
from typing import Any

from cryptography import x509
from starlette.types import Scope

from gateway.http.buffered import BufferedProtocol
from gateway.identity.principal import Grant, Principal, refused
from gateway.listening import peer_address
from gateway.policy.gateway_toml import Rules

SCOPE_KEY = "tidegate.client_certificate"
ENDS_KEY = "tidegate.client_certificate_ends"  # seconds since the epoch


class CertificateProtocol(BufferedProtocol):
    """Puts the names of the peer's certificate into each request's scope."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        shown = tls.getpeercert(binary_form=True) if tls else None
        self._names = certificate_names(shown) if shown else ()
        self._ends = certificate_end(shown) if shown else math.inf

    def on_message_begin(self) -> None:
        super().on_message_begin()
        scope: Any = self.scope
        scope[SCOPE_KEY], scope[ENDS_KEY] = self._names, self._ends


def certificate_names(der: bytes) -> tuple[str, ...]:
    """The subject, then the URIs and DNS names; () for a certificate that cannot be read."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = [certificate.subject.rfc4514_string()]
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return tuple(names)
    except ValueError:
        return ()
    uris = found.get_values_for_type(x509.UniformResourceIdentifier)
    hosts = found.get_values_for_type(x509.DNSName)
    return (*names, *(f"URI:{uri}" for uri in uris), *(f"DNS:{host}" for host in hosts))


def certificate_end(der: bytes) -> float:
    """Until when it is valid: a connection may last longer than the certificate that opened it."""
    try:
        return x509.load_der_x509_certificate(der).not_valid_after_utc.timestamp()
    except ValueError:
        return -math.inf


class Certificates:
    """The principals of the certificates in one gateway.toml."""

    def __init__(self, rules: Rules) -> None:
        self._principals = {
            name: Principal(
                f"cert:{name}",
                name,
                Grant(each.tenant, tuple(each.roles), tuple(each.models), tuple(each.scopes)),
            )
            for name, each in rules.certificates.items()
        }
        proxy = rules.proxy
        self._header = proxy.certificate_header.encode() if proxy else b""
        self._trusted = proxy.trusted if proxy else []

    def principal(self, scope: Scope) -> Principal | None:
        """Whose certificate was shown; None without one. Unauthenticated for two headers."""
        if not self._principals:
            return None
        names = scope.get(SCOPE_KEY) or self._vouched(scope)
        found = next((self._principals[name] for name in names if name in self._principals), None)
        ends = scope.get(ENDS_KEY, math.inf)
        if found is None or ends == math.inf:
            return found
        return replace(found, ends=ends) if ends > time.time() else None

    def _vouched(self, scope: Scope) -> list[str]:
        """What a trusted proxy's header says; from anybody else it is as if it were not there."""
        client = scope.get("client")
        if not self._trusted or not client or not self._is_trusted(client[0]):
            return []
        headers = scope["headers"]
        found = [value.decode("latin-1") for name, value in headers if name == self._header]
        if len(found) > 1:
            raise refused()  # the proxy added to what its client sent, instead of replacing it
        return found

    def _is_trusted(self, host: str) -> bool:
        try:
            address = peer_address(host)
        except ValueError:
            return False
        return any(address in network for network in self._trusted)
