"""Finds the line of a key in a TOML text (tomllib does not record it)."""

import tomllib
from collections.abc import Iterator, Sequence
from typing import Any

KeyPath = tuple[str | int, ...]


def line_of(text: str, path: Sequence[str | int]) -> int:
    """The line, from 1, of the key at ``path``, or of the nearest table that contains it.

    ``text`` must be valid TOML.
    """
    lines: dict[KeyPath, int] = {}
    table: KeyPath = ()
    lengths: dict[KeyPath, int] = {}  # of each array of tables so far
    for number, statement in _statements(text):
        parsed = tomllib.loads(statement)
        if statement.lstrip().startswith("["):
            table = _header(parsed, lengths)
            lines.setdefault(table, number)
        else:
            for key_path in _paths(parsed, table):
                lines.setdefault(key_path, number)
    ancestors = (tuple(path[:end]) for end in range(len(path), 0, -1))
    return next((lines[ancestor] for ancestor in ancestors if ancestor in lines), 1)


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Headers and assignments, each with the number of its first line."""
    statement, first = "", 0
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if not statement and line.strip().partition("#")[0] == "":
            continue
        first = first if statement else number
        statement += line
        try:
            tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue  # an array or a string that continues on the next line
        yield first, statement
        statement = ""


def _header(parsed: Any, lengths: dict[KeyPath, int]) -> KeyPath:
    """The path of a header's table: ``[[limits]]`` is ("limits", 0) the first time, then 1."""
    path: KeyPath = ()
    while parsed:
        name, parsed = next(iter(parsed.items()))
        path += (name,)
        if isinstance(parsed, list):
            lengths[path] = lengths.get(path, 0) + 1
            parsed = parsed[0]
        if path in lengths:
            path += (lengths[path] - 1,)
    return path


def _paths(value: Any, path: KeyPath) -> Iterator[KeyPath]:
    parts = enumerate(value) if isinstance(value, list) else value.items()
    for name, part in parts:
        yield (*path, name)
        if isinstance(part, dict | list):
            yield from _paths(part, (*path, name))
