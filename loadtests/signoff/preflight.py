"""What must be there before any load is sent; what is not is said in one line."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.preflight import (
    CannotStart,
    fetch,
    require_accepted,
    require_key,
    require_url,
)


@dataclass(frozen=True)
class Pipeline:
    """What the target says of a pipeline. ``inputs`` are name -> datatype and the shape of one row
    (with its batch dimension), in which -1 is a dimension that may have any size."""

    name: str
    versions: tuple[str, ...]
    routes: tuple[str, ...]
    example: Mapping[str, Any]
    inputs: Mapping[str, tuple[str, tuple[int, ...]]]

    @property
    def default_api(self) -> str:
        return "task" if f"/v1/{self.name}" in self.routes else "chat"

    def require_route(self, path: str) -> None:
        """CannotStart if the pipeline is not served there."""
        if path not in self.routes:
            raise CannotStart(
                f"{self.name} is not served at {path}, only at {', '.join(self.routes)}: choose "
                "another api in the file of objectives"
            )

    def require_tensors_can_be_made_up(self) -> None:
        """CannotStart if numbers from 0 to 1, or texts, would not be a realistic request."""
        for name, (datatype, shape) in self.inputs.items():
            if min(shape[1:], default=1) < 0 or datatype not in ("BYTES", "FP16", "FP32", "FP64"):
                raise CannotStart(
                    f"{self.name}'s input {name} is {datatype} {list(shape)}: no realistic values "
                    "can be made up for it, sign off with api = 'task'"
                )


def pipeline_of(url: str, name: str, key: str, whose: str = "the API key") -> Pipeline:
    """What the gateway says of a pipeline; ``whose`` names the key. CannotStart if the target is
    down, refuses the key, or does not serve it."""
    require_url(url)
    require_key(key)
    status, body = fetch(f"{url}/v1/pipelines/{name}", key)
    require_accepted(url, status, whose)
    if status == 404:
        raise CannotStart(f"{url} does not serve {name}, or not for {whose}")
    card = _document(body)
    if status != 200 or "example" not in card or "routes" not in card:
        raise CannotStart(f"{url} answers HTTP {status} for {name}: is it a Tidegate gateway?")
    _, body = fetch(f"{url}/v2/models/{name}", key)
    inputs = {
        tensor["name"]: (tensor["datatype"], _row(tensor["shape"]))
        for tensor in _document(body).get("inputs", [])
    }
    return Pipeline(name, tuple(card["versions"]), tuple(card["routes"]), card["example"], inputs)


def _row(shape: list[int]) -> tuple[int, ...]:
    """The batch dimension, which comes first, is 1."""
    return (abs(shape[0]), *shape[1:]) if shape else ()


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def require_writable(folder: Path) -> None:
    """CannotStart unless the report can be written: before the load, not after it."""
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise CannotStart(f"{folder} cannot be written: {error.strerror}: pass --out") from None
