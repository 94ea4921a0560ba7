"""Settings from the environment, read once from a mapping that is handed in.

Every setting is listed in docs/settings.md (a test compares).
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from modelspec.address import require_replica, resolved

_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[A-Za-z0-9._\[\]:-]+")


class SettingsError(ValueError):
    """The message names the variable and what it should hold."""


@dataclass(frozen=True)
class Settings:
    """Field ``x`` is the environment variable ``TIDEGATE_X``; units are in the names."""

    host: str = "127.0.0.1"
    gateway_port: int = 8080
    # The gRPC API; 0: none.
    grpc_port: int = 0
    # The gRPC API again, for clients that show a certificate: each must. 0: none.
    grpc_certificate_port: int = 0
    # The operator's listener, with /metrics; 0: none.
    admin_port: int = 0
    # TLS on every listener: a certificate (PEM, with its chain) and its key. '': no TLS.
    tls_certificate_file: str = ""
    tls_key_file: str = ""
    # Whose client certificates are believed; '': nobody is asked for one.
    tls_client_ca_file: str = ""
    workers: int = 1
    # Comma-separated Triton servers, each HOST:GRPC_PORT or HOST:GRPC_PORT/HTTP_PORT. With the HTTP
    # port, models that declare themselves short are asked over it
    # (gateway/upstream/http_upstream.py).
    replicas: tuple[str, ...] = ("127.0.0.1:8001",)
    # The key to Triton's repository index (a file, so that it is not in the environment).
    triton_key_file: Path = Path(".tidegate/triton.key")
    keys_file: Path = Path(".tidegate/keys.toml")
    pepper_file: Path = Path(".tidegate/pepper")
    # Who may do what, and how much (docs/policy.md). No file: every key may do everything.
    policy_file: Path = Path(".tidegate/gateway.toml")
    # The audit log, and what `tidegate up` counts (watch.prom, shown in /metrics).
    state_folder: Path = Path(".tidegate")
    # Where limits are counted for all workers and gateways together; '': in each process alone.
    redis_url: str = ""
    # How many gateways share the limits: each gives out its part while Redis is away.
    gateways: int = 1
    # Models that should be served: /readyz says 200 when each answers its golden probe (or, for one
    # without a probe, is loaded), and until then calling it is a 503, not a 404.
    pipelines: tuple[str, ...] = ()
    body_limit_bytes: int = 32 * 1024 * 1024
    deadline_s: float = 30.0
    # A body of which nothing comes for so long is refused; the deadline bounds the whole of it.
    body_patience_s: float = 10.0
    # A client that takes nothing of its answer for so long is cut.
    answer_patience_s: float = 20.0
    # Bytes of bodies that are still coming and of large answers that are not yet taken: of one
    # caller, and of all together.
    caller_held_bytes: int = 128 * 1024 * 1024
    held_bytes: int = 512 * 1024 * 1024
    # How long a connection is kept open between two requests: longer than the load balancer before
    # the gateway keeps it (60 s, most of them), or that one sends into a closed connection.
    keep_alive_s: int = 75
    # Web pages of these origins may call the gateway (CORS), such as https://app.example.com; "*":
    # those of every origin.
    cors_origins: tuple[str, ...] = ()
    # Requests under way to one replica; one more is refused, never queued here.
    max_inflight: int = 512
    # Percent of a server's slots for sequences that one tenant may hold, where there are tenants.
    sequence_share: int = 50
    # Whether /docs and /openapi.json can be read without a key.
    open_docs: bool = True
    refresh_s: float = 0.5
    probe_s: float = 1.0

    @property
    def kept_policy(self) -> Path:
        """Where the policy in force is kept, for a worker that is started again."""
        return kept_file(self.state_folder, self.policy_file, str(self.gateway_port))

    @property
    def kept_keys(self) -> Path:
        """Where the keys in force are kept, likewise: their HMACs, as in the file itself."""
        return kept_file(self.state_folder, self.keys_file, str(self.gateway_port), "keys")

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> "Settings":
        """Settings from ``TIDEGATE_*``; SettingsError names a variable that cannot be read."""
        values = {}
        for each in fields(cls):
            variable = f"TIDEGATE_{each.name.upper()}"
            if variable in environ:
                values[each.name] = _read(variable, environ[variable], each.default)
        return cls(**values)._checked()

    def _checked(self) -> "Settings":
        self._check_listeners()
        for name in (
            "workers",
            "body_limit_bytes",
            "deadline_s",
            "max_inflight",
            "gateways",
            "body_patience_s",
            "answer_patience_s",
            "caller_held_bytes",
            "held_bytes",
            "keep_alive_s",
            "sequence_share",
        ):
            if getattr(self, name) <= 0:
                raise SettingsError(f"TIDEGATE_{name.upper()} must be above 0")
        if bool(self.tls_certificate_file) != bool(self.tls_key_file):
            raise SettingsError("TIDEGATE_TLS_CERTIFICATE_FILE and _KEY_FILE: give both or neither")
        if self.tls_client_ca_file and not self.tls_certificate_file:
            raise SettingsError("TIDEGATE_TLS_CLIENT_CA_FILE needs TIDEGATE_TLS_CERTIFICATE_FILE")
        if self.grpc_certificate_port and not (self.grpc_port and self.tls_client_ca_file):
            raise SettingsError(
                "TIDEGATE_GRPC_CERTIFICATE_PORT needs TIDEGATE_GRPC_PORT and "
                "TIDEGATE_TLS_CLIENT_CA_FILE"
            )
        for origin in self.cors_origins:
            _check_origin(origin)
        if not self.replicas:
            raise SettingsError("TIDEGATE_REPLICAS is empty: give at least one host:port")
        for replica in self.replicas:
            _check_replica(replica)
        return self

    def _check_listeners(self) -> None:
        ports: dict[int, str] = {}
        for name in ("gateway_port", "grpc_port", "grpc_certificate_port", "admin_port"):
            variable, port = f"TIDEGATE_{name.upper()}", getattr(self, name)
            least = 1 if name == "gateway_port" else 0
            if not least <= port < 65536:
                raise SettingsError(f"{variable}={port}: give {least} to 65535")
            if port and port in ports:
                raise SettingsError(f"{variable} and {ports[port]} are both {port}: give two ports")
            ports[port] = variable
        try:
            resolved(self.host)
        except (OSError, UnicodeError):
            raise SettingsError(
                f"TIDEGATE_HOST={self.host!r} is neither an address nor the name of a machine: "
                "give an address of this machine, such as 127.0.0.1, ::1 or 0.0.0.0"
            ) from None


def kept_file(state_folder: Path, file: Path, port: str, what: str = "policy") -> Path:
    """Where the gateway on that port keeps what it has taken from the file."""
    name = hashlib.sha256(str(file.absolute()).encode()).hexdigest()[:12]
    return state_folder / f"{what}.{name}.{port}.settled"


def _check_replica(replica: str) -> None:
    try:
        require_replica(replica)
    except ValueError as error:
        raise SettingsError(f"TIDEGATE_REPLICAS: {error}") from None


def _check_origin(origin: str) -> None:
    if not _ORIGIN.fullmatch(origin):
        raise SettingsError(
            f"TIDEGATE_CORS_ORIGINS has {origin!r}: give origins as a browser sends them, such as "
            "https://app.example.com, or '*'"
        )


def _read(variable: str, text: str, default: Any) -> Any:
    """``text`` as the type that the default has."""
    if isinstance(default, tuple):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if isinstance(default, Path):
        return Path(text)
    try:
        return TypeAdapter(type(default)).validate_python(text)
    except ValidationError:
        kind = type(default).__name__
        raise SettingsError(f"{variable}={text!r} cannot be read as {kind}") from None
