"""What must be there before any load is sent; what is not is said in one line."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loadtests.preflight import CannotStart, fetch
from loadtests.texts import endless, real_texts


def pipeline_of(url: str, pipeline: str, key: str) -> Mapping[str, Any]:
    """The pipeline's entry in ``/v1/pipelines``. CannotStart if the target is down, refuses the
    key, or does not serve it."""
    if not url.startswith(("http://", "https://")):
        raise CannotStart(f"{url!r} is not a URL: pass http://HOST:PORT")
    status, body = fetch(f"{url}/v1/pipelines/{pipeline}", key)
    if status in (401, 403):
        raise CannotStart(f"{url} refuses the API key (HTTP {status}): set TIDEGATE_API_KEY")
    if status == 404:
        raise CannotStart(f"{url} does not serve {pipeline}, or not for this key")
    try:
        card = json.loads(body)
    except ValueError:
        card = None
    if status != 200 or not isinstance(card, dict) or "example" not in card:
        raise CannotStart(f"{url} answers HTTP {status} for {pipeline}: is it a Tidegate gateway?")
    return card


def requests_of(card: Mapping[str, Any]) -> Callable[[], bytes]:
    """The bodies to send: real texts where the pipeline takes a text, else its example."""
    example = dict(card["example"])
    if not isinstance(example.get("text"), str):
        body = json.dumps(example).encode()
        return lambda: body
    texts = endless(real_texts())
    return lambda: json.dumps({**example, "text": next(texts)}).encode()


def require_writable(folder: Path) -> None:
    """CannotStart unless the report can be written: before the load, not after it."""
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise CannotStart(f"{folder} cannot be written: {error.strerror}: pass --out") from None
