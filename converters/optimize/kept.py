"""What was measured, kept by content, so that a run that was stopped goes on where it was."""

import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from converters.cache import TOOLS, content_text
from converters.errors import ConversionError

# Part of every key: what is measured, and how. Raise it when either changes.
METHOD = 2


class Kept:
    """A folder of JSON files, each under the key of what it answers."""

    def __init__(self, folder: Path, machine: str) -> None:
        self.folder = folder
        tools = {tool: version(tool) for tool in TOOLS}
        self._settings = [METHOD, machine, tools]

    def key(self, *parts: object) -> str:
        """Of everything that decides a measurement: contents, not names of files."""
        return content_text(json.dumps([self._settings, parts], sort_keys=True, default=str))

    def get(self, key: str) -> Any | None:
        """None when it is not there; a file that cannot be read is as good as none."""
        try:
            return json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def put(self, key: str, value: Any) -> None:
        """Whole or not at all: the process may be stopped at any moment."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            unfinished = self.folder / f".{key}.{os.getpid()}"
            unfinished.write_text(json.dumps(value), encoding="utf-8")
            unfinished.replace(self.folder / f"{key}.json")
        except OSError as error:
            raise ConversionError(
                f"a measurement could not be kept in {self.folder} ({error}): make room, or give "
                "rights, and run the same command again"
            ) from error

    def once(self, key: str, measure: Callable[[], Any]) -> Any:
        """What is kept; measured now where there is nothing."""
        found = self.get(key)
        if found is None:
            found = measure()
            self.put(key, found)
        return found
