"""The weights in ``gateway.toml``: one table is changed, every other byte stays as somebody wrote
it. The gateway reads the file again within a second."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelspec.layout import atomic_write
from serving.errors import ServingError

_HEADER = re.compile(r"^\s*\[")


def set_weights(path: Path, pipeline: str, weights: Mapping[str, int]) -> None:
    """Make ``[routes.PIPELINE]`` hold these weights (percent); with none, the table goes.

    ServingError, and an unchanged file, if it is not TOML or says the routes in another form.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    before = _parsed(path, text)
    changed = _without(text.splitlines(keepends=True), pipeline)
    block = _block(pipeline, weights)
    if weights:
        changed = changed.rstrip() + ("\n\n" if changed.strip() else "") + block
    if _parsed(path, changed) != _wanted(before, pipeline, weights):
        raise ServingError(
            f"{path} says [routes.{pipeline}] in a form that is not changed here: write this "
            f"yourself and run the command again:\n{block or '(no table for it)'}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, changed, mode=0o600)


def _block(pipeline: str, weights: Mapping[str, int]) -> str:
    if not weights:
        return ""
    lines = [f'"{target}" = {percent}\n' for target, percent in sorted(weights.items())]
    return "".join([f'[routes."{pipeline}"]\n', *lines])


def _without(lines: list[str], pipeline: str) -> str:
    """The text without the pipeline's table."""
    own = re.compile(rf"""^\s*\[\s*routes\s*\.\s*["']?{re.escape(pipeline)}["']?\s*\]""")
    kept, inside = [], False
    for line in lines:
        if _HEADER.match(line):
            inside = bool(own.match(line))
        if not inside:
            kept.append(line)
    return "".join(kept)


def _wanted(before: Mapping[str, Any], pipeline: str, weights: Mapping[str, int]) -> dict[str, Any]:
    routes = {key: value for key, value in before.get("routes", {}).items() if key != pipeline}
    if weights:
        routes[pipeline] = dict(weights)
    rest = {key: value for key, value in before.items() if key != "routes"}
    return {**rest, "routes": routes} if routes else rest


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ServingError(f"{path} is not TOML, and was not changed: {error}") from error
