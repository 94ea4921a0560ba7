"""The rooms of ``serving`` have an order: each imports only those before it."""

import ast
from pathlib import Path

import serving

FOLDER = Path(serving.__file__).parent
ORDER = ["errors", "repository", "triton", "health", "publish", "tuning", "backends", "lint"]


def _imported_rooms(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("serving.")}


def test_every_room_has_its_number():
    rooms = {path.stem for path in FOLDER.iterdir()} - {"__init__", "__pycache__"}
    assert rooms == set(ORDER)


def test_no_room_imports_one_after_it():
    upward = {
        f"{path.relative_to(FOLDER)}: {imported}"
        for number, room in enumerate(ORDER)
        for path in [*(FOLDER / room).rglob("*.py"), FOLDER / f"{room}.py"]
        if path.is_file()
        for imported in _imported_rooms(path)
        if ORDER.index(imported) > number
    }
    assert not upward
