"""The cache of measurements, keyed by content: an interrupted run continues where it stopped."""

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from converters.cache import TOOLS, content_text
from converters.errors import ConversionError
from modelspec.files import atomic_write

# Part of every key: raise it when what is measured, or how, changes.
METHOD = 3


class MeasurementCache:
    """A folder of JSON files, one per measurement, named by its key."""

    def __init__(self, folder: Path, machine: str) -> None:
        self.folder = folder
        tools = {tool: version(tool) for tool in TOOLS}
        self._settings = [METHOD, machine, tools]

    def key(self, *parts: object) -> str:
        """The key of everything that determines a measurement: contents, not file names."""
        return content_text(json.dumps([self._settings, parts], sort_keys=True, default=str))

    def get(self, key: str) -> Any | None:
        """The value, or None if there is none; an unreadable file counts as none."""
        try:
            return json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def put(self, key: str, value: Any) -> None:
        """Store the value, completely or not at all: the process may be killed at any moment."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write(self.folder / f"{key}.json", json.dumps(value))
        except OSError as error:
            raise ConversionError(
                f"a measurement could not be saved in {self.folder} ({error}): free some space, or "
                "allow writing, and run the same command again"
            ) from error

    def once(self, key: str, measure: Callable[[], object]) -> Any:
        """The cached value; if there is none, it is measured now and cached."""
        value = self.get(key)
        if value is None:
            value = measure()
            self.put(key, value)
        return value
