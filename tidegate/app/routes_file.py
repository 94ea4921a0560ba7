"""The weights in ``gateway.toml``: one table is changed, comments and layout stay as they were
written. The gateway rereads the file within a second."""

import contextlib
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomlkit
from filelock import FileLock

from modelspec.files import atomic_write
from serving.errors import ServingError
from tidegate.app.toml_file import edited

Per = Literal["caller", "request"]
PER: Per = "caller"
# A worker that is stopped or hangs is killed within 20 s, and its successor reads the file.
TAKEN_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Route:
    """``[routes.PIPELINE]``: percent, of callers or of requests, by the name of another
    pipeline."""

    weights: dict[str, int] = field(default_factory=dict)
    per: Per = PER

    @property
    def routed(self) -> dict[str, int]:
        """The weights above 0."""
        return {name: percent for name, percent in self.weights.items() if percent > 0}


def read_route(path: Path, pipeline: str) -> Route:
    """The pipeline's route in the file; empty if it has none. ServingError if a gateway would
    refuse the file."""
    text = _text(path)
    table = _parsed(path, text).get("routes", {}).get(pipeline, {})
    require_taken(path, text)
    weights = {name: percent for name, percent in table.items() if isinstance(percent, int)}
    return Route(weights, "request" if table.get("per") == "request" else PER)


def read_shadow(path: Path, pipeline: str) -> str:
    """What ``[shadows.PIPELINE]`` in the file names; '' without one. ServingError if a gateway
    would refuse the file."""
    text = _text(path)
    table = _parsed(path, text).get("shadows", {}).get(pipeline, {})
    require_taken(path, text)
    return str(table.get("to", ""))


@dataclass(frozen=True)
class Share:
    """What ``model`` gets of a pipeline's traffic: percent of its callers or of its requests. A
    shadow gets copies of requests."""

    pipeline: str
    model: str
    kind: Literal["canary", "shadow"]
    percent: float
    per: Per


def read_shares(path: Path) -> list[Share]:
    """All canaries and shadows of the file that get anything. ServingError if a gateway would
    refuse the file."""
    text = _text(path)
    table = _parsed(path, text)
    require_taken(path, text)
    shares = []
    for pipeline in table.get("routes", {}):
        route = read_route(path, pipeline)
        shares += [
            Share(pipeline, model, "canary", percent, route.per)
            for model, percent in route.routed.items()
        ]
    for pipeline, shadow in table.get("shadows", {}).items():
        if shadow.get("percent", 0) > 0:
            shares.append(Share(pipeline, shadow["to"], "shadow", shadow["percent"], "request"))
    return shares


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold it from reading the file until it is written: two commands may edit it at once. Whoever
    shares the file by links has the same lock."""
    target = path.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f"{target.name}.lock")):
        yield


def wait_until_taken(path: Path) -> None:
    """Return when every worker of every gateway that follows this file has applied it, with what
    other commands wrote meanwhile; at once if none runs. ServingError after ``TAKEN_TIMEOUT_S``."""
    from gateway.policy.applied_policy import in_force, version_of

    deadline = time.monotonic() + TAKEN_TIMEOUT_S
    while True:
        expected = version_of(path.read_bytes())
        workers = in_force(path.parent, path)
        late = sorted(process for process, version in workers if version != expected)
        if not late:
            return
        if time.monotonic() > deadline:
            raise ServingError(
                f"{len(late)} of {len(workers)} workers of the gateway (process "
                f"{', '.join(map(str, late))}) have not applied {path} within "
                f"{TAKEN_TIMEOUT_S:.0f} s, "
                "and still route by the old weights; nothing was unloaded. See "
                f"{path.parent / 'logs' / 'gateway.log'}, and run the same command again"
            )
        time.sleep(0.1)


def set_weights(path: Path, pipeline: str, weights: Mapping[str, int], per: Per = PER) -> None:
    """Make ``[routes.PIPELINE]`` hold these weights (percent); remove the table if there are none.

    Raises ServingError, and leaves the file unchanged, if it is not TOML, writes the route in a way
    that cannot be edited, or would be refused by a gateway.
    """
    with locked(path):
        text = _text(path)
        before = _parsed(path, text)
        changed = edited(text, lambda document: _put(document, pipeline, weights, per))
        if _parsed(path, changed) != _with_weights(before, pipeline, weights, per):
            raise ServingError(
                f"{path} writes [routes.{pipeline}] in a form that this command does not change: "
                f"make its weights {dict(weights)} (per = {per!r}) by hand"
            )
        require_taken(path, changed)
        atomic_write(path, changed, mode=0o600)


def require_taken(path: Path, text: str) -> None:
    """ServingError for a policy that a gateway refuses: it would keep its previous one."""
    from gateway.policy.gateway_toml import PolicyError, parse_rules

    try:
        parse_rules(text, str(path))
    except PolicyError as error:
        raise ServingError(
            f"a gateway would refuse this, so it was not changed: {error}"
        ) from error


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _put(
    document: tomlkit.TOMLDocument, pipeline: str, weights: Mapping[str, int], per: Per
) -> None:
    """Change the pipeline's table in place, add it, or remove it if there are no weights."""
    routes: Any = document.setdefault("routes", tomlkit.table(is_super_table=True))
    if not weights:
        routes.pop(pipeline, None)
        if not routes:
            document.remove("routes")
        return
    table = routes.setdefault(pipeline, tomlkit.table())
    if per == PER:
        table.pop("per", None)
    else:
        table["per"] = per
    for pipeline in [*table]:
        if pipeline != "per" and pipeline not in weights:
            table.remove(pipeline)
    for pipeline, percent in sorted(weights.items()):
        table[pipeline] = percent


def _with_weights(
    before: Mapping[str, Any], pipeline: str, weights: Mapping[str, int], per: Per
) -> dict[str, object]:
    routes = {key: value for key, value in before.get("routes", {}).items() if key != pipeline}
    if weights:
        routes[pipeline] = {**({"per": per} if per != PER else {}), **weights}
    rest = {key: value for key, value in before.items() if key != "routes"}
    return {**rest, "routes": routes} if routes else rest


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ServingError(f"{path} is not TOML, and was not changed: {error}") from error
