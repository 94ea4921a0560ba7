"""Checks that the stack is there before Locust starts; a problem is reported in one line.

Locust itself would start anyway, and report 100 % failures if the stack is not running.
"""

import http.client
import json
import math
import socket
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PIPELINE = "text_embedding"
CHECK_TIMEOUT_S = 10.0


class CannotStart(Exception):
    """The stack is missing or not accessible; the message says what to do."""


def find_key(environ: Mapping[str, str]) -> str:
    """TIDEGATE_API_KEY, else the key that ``make up`` created; CannotStart without either."""
    if environ.get("TIDEGATE_API_KEY"):
        return environ["TIDEGATE_API_KEY"].strip()
    file = Path(environ.get("TIDEGATE_HOME", ".")) / ".tidegate" / "dev.key"
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        raise CannotStart(
            f"there is no API key in TIDEGATE_API_KEY or {file}: run `make up` first, "
            "or create one with `tidegate keys create NAME`"
        ) from None


def parse_weights(apis: Sequence[str]) -> dict[str, float]:
    """{"task": 3.0} for ``["task=3"]``; without a number it is 1. CannotStart names a wrong one."""
    weights: dict[str, float] = {}
    for text in apis:
        api, _, number = text.partition("=")
        try:
            weights[api] = float(number or 1)
        except ValueError:
            weights[api] = math.nan
        if not 0 < weights[api] < math.inf:
            raise CannotStart(f"--api {text}: write an API and its weight, as in task=3")
    return weights


def check_gateway(url: str, key: str) -> None:
    """Raises CannotStart unless the gateway is ready, accepts the key and serves the pipeline."""
    require_url(url)
    require_key(key)
    status, _ = fetch(f"{url}/readyz", "")
    if status != 200:
        raise CannotStart(f"the stack at {url} is not ready (HTTP {status}): run `make up`")
    status, body = fetch(f"{url}/v1/models", key)
    require_accepted(url, status)
    if status != 200 or PIPELINE not in _model_ids(body):
        raise CannotStart(
            f"{url} does not serve {PIPELINE}: run `make up`, or check its /v1/models"
        )


def require_url(url: str) -> None:
    """CannotStart unless it is the URL of a gateway, without a path."""
    try:
        parts = urlsplit(url)
        is_right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port or an IPv6 address that is none
        is_right = False
    if not is_right or parts.path or parts.query or parts.fragment or parts.username:
        raise CannotStart(f"{url!r} is not a gateway's URL: pass http://HOST:PORT, without a path")


def require_key(key: str) -> None:
    """CannotStart if no header can carry the key."""
    if not key.isascii():
        raise CannotStart("the API key has characters that no header can carry: check it")


def require_accepted(url: str, status: int, whose: str = "the API key") -> None:
    """CannotStart if the ``status`` of a request says that the gateway refuses ``whose`` key."""
    if status in (401, 403):
        raise CannotStart(
            f"{url} refuses {whose} (HTTP {status}): set TIDEGATE_API_KEY to a valid "
            "one (`tidegate keys create NAME` creates one), or TIDEGATE_HOME to the stack's folder"
        )


def check_triton(address: str) -> None:
    """Raises CannotStart unless Triton reports over gRPC that the pipeline is ready."""
    from tritonclient.grpc import InferenceServerClient
    from tritonclient.utils import InferenceServerException

    no_proxy = [("grpc.enable_http_proxy", 0)]
    try:
        with InferenceServerClient(address, channel_args=no_proxy) as client:
            ready = client.is_model_ready(PIPELINE, client_timeout=CHECK_TIMEOUT_S)
    except InferenceServerException as error:
        raise CannotStart(
            f"no Triton answers gRPC at {address} ({error.status()}): run `make up`, "
            "or pass its address with --grpc-address"
        ) from error
    if not ready:
        raise CannotStart(f"Triton at {address} does not serve {PIPELINE}")


def check_ui_port(port: int) -> None:
    """Raises CannotStart if the port is in use: Locust would end in a traceback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise CannotStart(
                f"port {port} is taken: choose another for Locust's UI with --ui-port "
                "(TIDEGATE_LOCUST_PORT)"
            ) from None


def fetch(url: str, key: str) -> tuple[int, bytes]:
    """The status and body of any HTTP response; never through a proxy."""
    request = urllib.request.Request(url)  # noqa: S310 (require_url takes http and https only)
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=CHECK_TIMEOUT_S) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        raise CannotStart(f"no gateway answers at {url} ({reason}): run `make up`") from error


def _model_ids(body: bytes) -> set[str]:
    try:
        document: Any = json.loads(body)
        return {entry["id"] for entry in document["data"]}
    except (ValueError, KeyError, TypeError):
        return set()
