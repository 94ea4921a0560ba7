"""How large the gateway is: ``python -m tests.gateway.size`` prints lines of code by part.

A line of code holds something that runs: blank lines, comments and docstrings are not counted.
"""

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

import gateway

FOLDER = Path(gateway.__file__).parent
ADDONS = FOLDER / "addons"
_LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def lines_of_code(text: str) -> int:
    """How many lines of a Python file are code."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = {
        line
        for token in tokens
        if token.type not in _LAYOUT
        for line in range(token.start[0], token.end[0] + 1)
    }
    return len(lines - _docstrings(ast.parse(text)))


def _docstrings(tree: ast.AST) -> set[int]:
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            found |= set(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    return found


def by_part() -> dict[str, int]:
    """``core/PART`` and ``addons/PART`` -> lines of code; the add-ons' table is the core's."""
    parts: Counter[str] = Counter()
    for path in FOLDER.rglob("*.py"):
        folder, *inside = path.relative_to(FOLDER).with_suffix("").parts
        if folder == "addons" and inside != ["__init__"]:
            name = f"addons/{inside[0]}"
        else:
            name = f"core/{folder}" if inside and folder != "addons" else "core/its own files"
        parts[name] += lines_of_code(path.read_text())
    return dict(parts)


def total(parts: dict[str, int], which: str = "") -> int:
    return sum(lines for name, lines in parts.items() if name.startswith(which))


def table() -> str:
    parts, lines = by_part(), []
    for which in ("core", "addons"):
        lines.append(f"{total(parts, which):6,}  {which}")
        mine = {name: count for name, count in parts.items() if name.startswith(which)}
        for name, count in sorted(mine.items(), key=lambda each: -each[1]):
            lines.append(f"{count:12,}  {name.partition('/')[2]}")
    return "\n".join([*lines, f"{total(parts):6,}  the whole gateway"])


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
