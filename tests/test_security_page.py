"""docs/security.md names tests: each is there, and every row has one."""

import ast
import functools
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "security.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ")][1:]


@functools.cache
def _tests(file: str) -> set[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, functions)}


def test_every_row_names_tests_that_are_there():
    assert len(ROWS) > 30
    for row in ROWS:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row.split("|")[3])
        assert named, row
        for file, test in named:
            assert test in _tests(file), f"{file}::{test}"


def test_every_risk_of_the_list_has_a_row():
    text = "\n".join(ROWS)
    assert [n for n in range(1, 11) if f"**API{n}**" not in text] == []
