"""Settings from the environment, read once from a mapping that the caller passes.

docs/settings.md lists every setting (a test compares).
"""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from modelspec.address import host_and_port, is_ip, require_replicas, resolved

_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[A-Za-z0-9._\[\]:-]+")


class SettingsError(ValueError):
    """The message names the variable and what it should contain."""


@dataclass(frozen=True)
class Settings:
    """Field ``x`` is the environment variable ``TIDEGATE_X``; units are in the names."""

    host: str = "127.0.0.1"
    gateway_port: int = 8080
    # The gRPC API; 0: none.
    grpc_port: int = 0
    # The gRPC API for clients with a certificate, which is required on this port. 0: none.
    grpc_certificate_port: int = 0
    # The operator's listener, with /metrics; 0: none.
    admin_port: int = 0
    # TLS on every listener: a certificate (PEM, with its chain) and its key. '': no TLS.
    tls_certificate_file: str = ""
    tls_key_file: str = ""
    # The authorities whose client certificates are accepted; '': no client is asked for one.
    tls_client_ca_file: str = ""
    workers: int = 1
    # Comma-separated Triton servers, each HOST:GRPC_PORT or HOST:GRPC_PORT/HTTP_PORT. With the HTTP
    # port, models that declare themselves short are called over HTTP
    # (gateway/upstream/http_upstream.py). dns:HOST:GRPC_PORT stands for every address of the name,
    # and srv:NAME for every target of its SRV records.
    replicas: tuple[str, ...] = ("127.0.0.1:8001",)
    # The DNS server that is asked for these names, IP:PORT; '': those of /etc/resolv.conf.
    dns_server: str = ""
    # The key for Triton's repository index (a file, so that it is not in the environment).
    triton_key_file: Path = Path(".tidegate/triton.key")
    keys_file: Path = Path(".tidegate/keys.toml")
    pepper_file: Path = Path(".tidegate/pepper")
    # Who may do what, and how much (docs/policy.md). No file: every key may do everything.
    policy_file: Path = Path(".tidegate/gateway.toml")
    # The audit log, and the metrics of `tidegate up` (watch.prom, shown in /metrics).
    state_folder: Path = Path(".tidegate")
    # One line of JSON per request: 'stdout', or a file; '': none.
    request_log: str = ""
    # The OpenTelemetry collector (OTLP/HTTP) that gets traces, such as
    # http://127.0.0.1:4318/v1/traces; '': none. Needs the extra 'otel'.
    otlp_endpoint: str = ""
    # The share of requests that are traced if their callers have not decided that.
    trace_ratio: float = 0.01
    # The Redis that counts limits for all workers and gateways; '': each process counts separately.
    redis_url: str = ""
    # How many gateways share the limits: each grants its share while Redis is unavailable.
    gateways: int = 1
    # MiB of responses of deterministic models that are kept to be given again, of all workers
    # together (docs/caching.md); 0: none is.
    cache_mib: int = 0
    # How long a response is kept.
    cache_ttl_s: float = 3600.0
    # The Redis in which all workers and gateways keep responses together, besides their own memory;
    # '': in memory only.
    cache_redis_url: str = ""
    # Models that should be served: /readyz returns 200 when each answers its golden probe (or is
    # loaded, if it has no probe). Until then, calling one is a 503, not a 404.
    pipelines: tuple[str, ...] = ()
    body_limit_bytes: int = 32 * 1024 * 1024
    deadline_s: float = 30.0
    # A body that stalls for this long is refused; the deadline bounds the whole body.
    body_timeout_s: float = 10.0
    # A client that reads nothing of its response for this long is disconnected.
    send_timeout_s: float = 20.0
    # Bytes of bodies that are still arriving and of large responses that have not been read yet:
    # per caller, and in total.
    caller_buffered_bytes: int = 128 * 1024 * 1024
    buffered_bytes: int = 512 * 1024 * 1024
    # How long a connection is kept open between two requests: longer than the load balancer in
    # front of the gateway does (most: 60 s), which would otherwise send into a closed connection.
    keep_alive_s: int = 75
    # Web pages of these origins may call the gateway (CORS), such as https://app.example.com; "*":
    # pages of every origin.
    cors_origins: tuple[str, ...] = ()
    # Requests in flight to one replica; any more are refused, never queued here.
    max_inflight: int = 512
    # Percent of a server's sequence slots that one tenant may hold, if there are tenants.
    sequence_share: int = 50
    # Whether /docs and /openapi.json can be read without a key.
    open_docs: bool = True
    # After SIGTERM: how long the gateway serves on although it says that it is not ready, so that
    # load balancers notice; and then how long requests and streams under way have to end.
    drain_notice_s: float = 0.0
    drain_limit_s: int = 10
    refresh_s: float = 0.5
    probe_s: float = 1.0

    @property
    def last_good_policy(self) -> Path:
        """Where the policy in force is saved, for a worker that is restarted."""
        return last_good_file(self.state_folder, self.policy_file, str(self.gateway_port))

    @property
    def last_good_keys(self) -> Path:
        """Where the keys in force are saved, likewise: their HMACs, as in the file itself."""
        return last_good_file(self.state_folder, self.keys_file, str(self.gateway_port), "keys")

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> "Settings":
        """Settings from ``TIDEGATE_*``. Raises SettingsError, which names an invalid variable."""
        values = {}
        for field in fields(cls):
            variable = f"TIDEGATE_{field.name.upper()}"
            if variable in environ:
                values[field.name] = _read(variable, environ[variable], field.default)
        settings = cls(**values)
        settings._check()
        return settings

    def _check(self) -> None:
        self._check_listeners()
        for name in (
            "workers",
            "body_limit_bytes",
            "deadline_s",
            "max_inflight",
            "gateways",
            "body_timeout_s",
            "send_timeout_s",
            "caller_buffered_bytes",
            "buffered_bytes",
            "keep_alive_s",
            "sequence_share",
            "drain_limit_s",
        ):
            if getattr(self, name) <= 0:
                raise SettingsError(f"TIDEGATE_{name.upper()} must be above 0")
        self._check_cache()
        if not 0 <= self.drain_notice_s < math.inf:
            raise SettingsError("TIDEGATE_DRAIN_NOTICE_S must be 0 or more seconds")
        if bool(self.tls_certificate_file) != bool(self.tls_key_file):
            raise SettingsError("TIDEGATE_TLS_CERTIFICATE_FILE and _KEY_FILE: set both or neither")
        if self.tls_client_ca_file and not self.tls_certificate_file:
            raise SettingsError("TIDEGATE_TLS_CLIENT_CA_FILE needs TIDEGATE_TLS_CERTIFICATE_FILE")
        if self.grpc_certificate_port and not (self.grpc_port and self.tls_client_ca_file):
            raise SettingsError(
                "TIDEGATE_GRPC_CERTIFICATE_PORT needs TIDEGATE_GRPC_PORT and "
                "TIDEGATE_TLS_CLIENT_CA_FILE"
            )
        for origin in self.cors_origins:
            _check_origin(origin)
        if not 0 <= self.trace_ratio <= 1:
            raise SettingsError("TIDEGATE_TRACE_RATIO must be from 0 to 1")
        if self.otlp_endpoint:
            _check_otlp(self.otlp_endpoint)
        if not self.replicas:
            raise SettingsError("TIDEGATE_REPLICAS is empty: set at least one HOST:GRPC_PORT")
        for replica in self.replicas:
            _check_replica(replica)
        if self.dns_server:
            _check_dns_server(self.dns_server)

    def _check_cache(self) -> None:
        if self.cache_mib < 0:
            raise SettingsError("TIDEGATE_CACHE_MIB must be 0 (no response is kept) or more")
        if not 0 < self.cache_ttl_s < math.inf:
            raise SettingsError("TIDEGATE_CACHE_TTL_S must be above 0 seconds")
        if self.cache_redis_url and not self.cache_mib:
            raise SettingsError("TIDEGATE_CACHE_REDIS_URL needs TIDEGATE_CACHE_MIB above 0")

    def _check_listeners(self) -> None:
        ports: dict[int, str] = {}
        for name in ("gateway_port", "grpc_port", "grpc_certificate_port", "admin_port"):
            variable, port = f"TIDEGATE_{name.upper()}", getattr(self, name)
            least = 1 if name == "gateway_port" else 0
            if not least <= port < 65536:
                raise SettingsError(f"{variable}={port} must be from {least} to 65535")
            if port and port in ports:
                raise SettingsError(
                    f"{variable} and {ports[port]} are both {port}: set two different ports"
                )
            ports[port] = variable
        try:
            resolved(self.host)
        except (OSError, UnicodeError):
            raise SettingsError(
                f"TIDEGATE_HOST={self.host!r} is neither an IP address nor a host name: "
                "set an address of this machine, such as 127.0.0.1, ::1 or 0.0.0.0"
            ) from None


def last_good_file(state_folder: Path, file: Path, port: str, what: str = "policy") -> Path:
    """Where the gateway on that port saves what it has read from the file."""
    name = hashlib.sha256(str(file.absolute()).encode()).hexdigest()[:12]
    return state_folder / f"{what}.{name}.{port}.last_good"


def _check_replica(replica: str) -> None:
    try:
        require_replicas(replica)
    except ValueError as error:
        raise SettingsError(f"TIDEGATE_REPLICAS: {error}") from None


def _check_dns_server(server: str) -> None:
    try:
        host, _ = host_and_port(server)
    except ValueError as error:
        raise SettingsError(f"TIDEGATE_DNS_SERVER: {error}") from None
    if not is_ip(host):
        raise SettingsError(
            f"TIDEGATE_DNS_SERVER={server!r} must be an IP address and a port, such as "
            "10.96.0.10:53"
        )


def _check_otlp(endpoint: str) -> None:
    if not endpoint.startswith(("http://", "https://")):
        raise SettingsError(
            f"TIDEGATE_OTLP_ENDPOINT={endpoint!r} must be a URL, such as "
            "http://127.0.0.1:4318/v1/traces"
        )
    try:
        is_installed = find_spec("opentelemetry.exporter.otlp.proto.http") is not None
        is_installed &= find_spec("opentelemetry.sdk") is not None
    except ModuleNotFoundError:  # a package above it
        is_installed = False
    if not is_installed:
        raise SettingsError(
            "TIDEGATE_OTLP_ENDPOINT needs OpenTelemetry's SDK: install it with "
            "pip install -c constraints.txt -e '.[otel]'"
        )


def _check_origin(origin: str) -> None:
    if not _ORIGIN.fullmatch(origin):
        raise SettingsError(
            f"TIDEGATE_CORS_ORIGINS has {origin!r}: write origins as a browser sends them, such as "
            "https://app.example.com, or '*'"
        )


def _read(variable: str, text: str, default: object) -> Any:
    """``text`` as the type of the default."""
    if isinstance(default, tuple):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if isinstance(default, Path):
        return Path(text)
    try:
        return TypeAdapter(type(default)).validate_python(text)
    except ValidationError:
        type_name = type(default).__name__
        raise SettingsError(f"{variable}={text!r} is not a valid {type_name}") from None
