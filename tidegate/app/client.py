"""A small gateway client for the verbs that talk to a running stack."""

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPResponse
from typing import Any

from serving.errors import ServingError
from tidegate.app.direct import direct_opener
from tidegate.app.paths import Paths

TIMEOUT_S = 30
_TIMING = re.compile(r"(\w+);dur=([\d.]+)")


@dataclass(frozen=True)
class GatewayResponse:
    """``timing`` is the Server-Timing header: milliseconds in the gateway and upstream of it."""

    body: Any
    timing: Mapping[str, float]


@dataclass(frozen=True)
class GatewayClient:
    url: str
    key: str

    @classmethod
    def at(cls, url: str) -> "GatewayClient":
        """A client with the key in TIDEGATE_API_KEY, else the dev key; ServingError without
        either."""
        key = os.environ.get("TIDEGATE_API_KEY", "")
        if not key:
            path = Paths.current().dev_key
            if not path.exists():
                raise ServingError(f"no key at {path}: start the stack with `make up`")
            key = path.read_text().strip()
        return cls(url.rstrip("/"), key)

    def serves(self, pipeline: str) -> bool:
        """Whether the gateway serves the pipeline, and lets this key read its card; ServingError
        carries the reason if it takes no key like this, or cannot tell."""
        try:
            with self._answered(f"pipelines/{pipeline}") as response:
                return bool(json.load(response)["versions"])
        except urllib.error.HTTPError as error:
            if error.code in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
                return False
            raise _refusal(error) from error

    def call(self, endpoint: str, body: Mapping[str, Any]) -> GatewayResponse:
        """POST to a task endpoint; ServingError carries the gateway's reason."""
        try:
            with self._answered(endpoint, json.dumps(body).encode()) as response:
                timing = _TIMING.findall(response.headers.get("server-timing", ""))
                durations = {name: float(ms) for name, ms in timing}
                return GatewayResponse(json.load(response), durations)
        except urllib.error.HTTPError as error:
            raise _refusal(error) from error

    @contextmanager
    def _answered(self, path: str, body: bytes | None = None) -> Iterator[HTTPResponse]:
        """The response to a GET, or to a POST of the body; HTTPError for a refusal."""
        request = urllib.request.Request(  # noqa: S310 - the user's own gateway
            f"{self.url}/v1/{path}",
            body,
            {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
        )
        try:
            with direct_opener().open(request, timeout=TIMEOUT_S) as response:
                yield response
        except urllib.error.HTTPError:
            raise
        except OSError as error:
            raise ServingError(
                f"no gateway answers at {self.url}: start it with `make up` ({error})"
            ) from error


def _refusal(error: urllib.error.HTTPError) -> ServingError:
    problem = json.loads(error.read() or b"{}")
    return ServingError(f"the gateway refused: {problem.get('detail', error)}")
