"""The rooms of the gateway have an order: a module imports its own room and those below it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import gateway

FOLDER = Path(gateway.__file__).parent
# From the bottom to the top; what has no folder is a module at the root.
ORDER = [
    *("errors", "render", "settings", "supervision", "listening", "heartbeat", "lazy_timer"),
    "draining",
    *("limits", "policy", "identity", "http", "models", "upstream", "metrics", "audit", "access"),
    "response_cache",
    *(
        "workers",
        "logs",
        "request_log",
        "tracing",
        "shadowing",
        "row_inference",
        "core",
        "background",
        "middleware",
        "api",
        "app",
    ),
    "__main__",
]
APIS = ["openapi", "event_streams", "admin", "v2", "openai", "tasks", "grpc"]


def _imports(path: Path) -> Iterator[list[str]]:
    """The modules of ours that a file imports, wherever in it, without ``gateway``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gateway."):
            yield str(node.module).split(".")[1:]


def test_no_room_imports_one_above_it():
    for path in FOLDER.rglob("*.py"):
        room = path.relative_to(FOLDER).with_suffix("").parts
        for imported in _imports(path):
            wrong = f"{path.relative_to(FOLDER)} imports gateway.{'.'.join(imported)}"
            if room[0] != imported[0]:
                assert ORDER.index(room[0]) > ORDER.index(imported[0]), wrong
            elif room[0] == "api" and room[1] != imported[1]:
                assert APIS.index(room[1]) > APIS.index(imported[1]), wrong


def test_every_room_has_its_level():
    names = {path.stem if path.suffix else path.name for path in FOLDER.iterdir()}
    assert names - {"__init__", "__pycache__", "py.typed"} == set(ORDER)
    assert {path.stem for path in (FOLDER / "api").iterdir()} - {"__init__", "__pycache__"} == set(
        APIS
    )
