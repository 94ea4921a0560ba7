"""Run the gateway: ``python -m gateway``. Settings come from the environment (``TIDEGATE_*``)."""

import contextlib
import os
import socket
import sys
from collections.abc import Mapping
from typing import Any

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from gateway.draining import DrainingServer
from gateway.http.bounded import BoundedProtocol
from gateway.http.connections import raise_descriptor_limit
from gateway.listening import listening_socket
from gateway.logs import set_up
from gateway.metrics import SHARED_FOLDER, shared_folder
from gateway.policy.gateway_toml import PolicyError
from gateway.policy.reload import PolicyFile
from gateway.settings import Settings, SettingsError
from gateway.workers import run_workers
from modelspec.address import joined

APP = "gateway.app:from_environment"
# Set when a gateway that died is restarted: it continues with the policy that was in force. Without
# it the gateway was started deliberately, and uses what the file says now.
RESTARTED = "TIDEGATE_RESTARTED"


def main() -> int:
    try:
        settings = Settings.read(os.environ)
        is_restarted = os.environ.get(RESTARTED) == "1"
        _check_policy(settings, is_restarted=is_restarted)
        if not is_restarted:
            settings.last_good_keys.unlink(missing_ok=True)
        tls_options = _tls_options(settings)
        listener = _listener(settings, settings.gateway_port)
        for port in (settings.grpc_port, settings.grpc_certificate_port, settings.admin_port):
            if port:  # workers share it, and so could another gateway: each with half of the calls
                _listener(settings, port).close()
    except (SettingsError, PolicyError, OSError) as error:
        sys.stderr.write(f"gateway: {error}\n")
        return 2
    set_up()
    with contextlib.ExitStack() as stack:
        if settings.workers > 1 and SHARED_FOLDER not in os.environ:
            os.environ[SHARED_FOLDER] = stack.enter_context(shared_folder())
        _run(settings, tls_options, listener)
    return 0


def _listener(settings: Settings, port: int) -> socket.socket:
    """Raises SettingsError if the address cannot be bound."""
    try:
        return listening_socket(settings.host, port)
    except OSError as error:
        address = joined(settings.host, port)
        raise SettingsError(f"cannot listen on {address}: {error.strerror or error}") from None


def _tls_options(settings: Settings) -> dict[str, object]:
    """uvicorn's options for terminating TLS; {} without a certificate."""
    if not settings.tls_certificate_file:
        return {}
    from gateway.http.tls import Tls

    return Tls(settings).http()


def _check_policy(settings: Settings, *, is_restarted: bool) -> None:
    """Raises PolicyError if the file is invalid and there is no earlier policy to continue with."""
    if is_restarted and settings.last_good_policy.exists():
        return  # the workers compare the file with what was in force
    try:
        PolicyFile(settings.policy_file).refresh()
    except PolicyError as error:
        if not _has_last_good(settings):
            raise
        sys.stderr.write(f"gateway: {error}; the last good policy is in force instead\n")
        return
    with contextlib.suppress(FileNotFoundError):
        settings.last_good_policy.unlink()


def _has_last_good(settings: Settings) -> bool:
    """Whether there is a saved policy that can be read. A saved note that there was no file is not
    enough to start with an invalid one: its rules may be the reason for starting the gateway."""
    saved = PolicyFile(settings.policy_file, last_good=settings.last_good_policy)
    with contextlib.suppress(PolicyError):
        saved.refresh()
    return saved.current.version != "default"


def _run(settings: Settings, tls_options: Mapping[str, Any], listener: socket.socket) -> None:
    raise_descriptor_limit()
    options: dict[str, Any] = {
        "factory": True,
        "workers": settings.workers,
        "http": BoundedProtocol,
        "loop": "gateway.http.loop:GatewayLoop",
        "timeout_keep_alive": settings.keep_alive_s,
        "ws": "none",
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,  # the client's address and scheme are not used
        "log_config": None,
        "timeout_graceful_shutdown": settings.drain_limit_s,
        **tls_options,
    }
    config = uvicorn.Config(APP, **options)
    if settings.workers > 1:
        if not run_workers(config, listener):
            sys.exit(STARTUP_FAILURE)
        return
    server = DrainingServer(config, settings.drain_notice_s)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    if not server.started:
        sys.exit(STARTUP_FAILURE)


if __name__ == "__main__":
    sys.exit(main())
