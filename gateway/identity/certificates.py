"""Client certificates: presented to the gateway itself, or to a proxy that vouches for them.

``gateway.http.tls`` verifies the peer's chain and puts the certificate's names into the scope: its
subject in RFC 4514 notation (``CN=batch,O=Acme``) and each ``URI:...`` and ``DNS:...`` of its SAN.
"""

import math
import time
from dataclasses import replace

from cryptography import x509
from starlette.types import Scope

from gateway.identity.credentials import refused
from gateway.listening import peer_address
from gateway.policy.gateway_toml import Rules
from gateway.policy.principal import Grant, Principal

SCOPE_KEY = "tidegate.client_certificate"
ENDS_KEY = "tidegate.client_certificate_ends"  # seconds since the epoch


def certificate_names(der: bytes) -> tuple[str, ...]:
    """The subject, then the URIs and DNS names; () for a certificate that cannot be read."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = [certificate.subject.rfc4514_string()]
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return tuple(names)
    except ValueError:
        return ()
    uris = san.get_values_for_type(x509.UniformResourceIdentifier)
    hosts = san.get_values_for_type(x509.DNSName)
    return (*names, *(f"URI:{uri}" for uri in uris), *(f"DNS:{host}" for host in hosts))


def certificate_end(der: bytes) -> float:
    """When it expires, in seconds since the epoch: a connection may outlive the certificate that
    opened it."""
    try:
        return x509.load_der_x509_certificate(der).not_valid_after_utc.timestamp()
    except ValueError:
        return -math.inf


class Certificates:
    """The principals of the certificates in one gateway.toml."""

    def __init__(self, rules: Rules) -> None:
        self._principals: dict[str, Principal] = {}
        for name, table in rules.certificates.items():
            grant = Grant(
                table.tenant, tuple(table.roles), tuple(table.models), tuple(table.scopes)
            )
            self._principals[name] = Principal(f"cert:{name}", name, grant)
        proxy = rules.proxy
        self._header = proxy.certificate_header.encode() if proxy else b""
        self._trusted = proxy.trusted if proxy else []

    def principal(self, scope: Scope) -> Principal | None:
        """The holder of the request's certificate; None without one. Raises Unauthenticated if a
        proxy sent the header twice."""
        if not self._principals:
            return None
        names = scope.get(SCOPE_KEY) or self._forwarded_names(scope)
        principals = (self._principals[name] for name in names if name in self._principals)
        principal = next(principals, None)
        ends = scope.get(ENDS_KEY, math.inf)
        if principal is None or ends == math.inf:
            return principal
        return replace(principal, ends=ends) if ends > time.time() else None

    def _forwarded_names(self, scope: Scope) -> list[str]:
        """The names in a trusted proxy's header; anybody else's header is ignored."""
        client = scope.get("client")
        if not self._trusted or not client or not self._is_trusted(client[0]):
            return []
        headers = scope["headers"]
        values = [value.decode("latin-1") for name, value in headers if name == self._header]
        if len(values) > 1:
            raise refused()  # the proxy added to its client's header instead of replacing it
        return values

    def _is_trusted(self, host: str) -> bool:
        try:
            address = peer_address(host)
        except ValueError:
            return False
        return any(address in network for network in self._trusted)
