"""The core is complete without its add-ons; a gateway loads only those that it was asked for."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gateway
from gateway.addons import ADDONS, ROUTES, load

FOLDER = Path(gateway.__file__).parent
ADDONS_FOLDER = FOLDER / "addons"
CORE = [path for path in sorted(FOLDER.rglob("*.py")) if ADDONS_FOLDER not in path.parents]
# What only add-ons need.
LIBRARIES = ("redis", "jwt", "httpx", "jinja2", "cryptography")
OPENED = """
import asyncio, json, os, sys
from gateway.app import from_environment

async def opened():
    received = asyncio.Queue()
    await received.put({"type": "lifespan.startup"})
    async def send(message):
        assert not message["type"].endswith("failed"), message
        await received.put({"type": "lifespan.shutdown"})
    await from_environment()({"type": "lifespan"}, received.get, send)

asyncio.run(opened())
print(json.dumps(sorted(sys.modules)))
"""


def _imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def _loaded(tmp_path, **environ: str) -> set[str]:
    """The modules of a gateway that was started with these settings and stopped again."""
    given = {**os.environ, "PYTHONPATH": str(FOLDER.parent), **environ}
    run = subprocess.run(
        [sys.executable, "-c", OPENED], capture_output=True, text=True, cwd=tmp_path, env=given
    )
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout))


def _addons(modules: set[str]) -> set[str]:
    prefix = "gateway.addons."
    return {name.removeprefix(prefix).split(".")[0] for name in modules if name.startswith(prefix)}


def test_the_core_imports_no_addon():
    allowed = {"gateway.addons", "gateway.addons.load", "gateway.addons.ROUTES"}
    for path in CORE:
        wrong = {name for name in _imports(path) if name.startswith("gateway.addons")} - allowed
        assert not wrong, path
    assert not any(name.startswith("gateway") for name in _imports(ADDONS_FOLDER / "__init__.py"))


def test_a_gateway_with_default_settings_loads_the_audit_log_and_no_other_addon(tmp_path):
    loaded = _loaded(tmp_path)
    assert _addons(loaded) == {"audit"}
    assert not loaded.intersection(LIBRARIES)


def test_settings_and_policy_turn_addons_on(tmp_path):
    policy = tmp_path / "gateway.toml"
    policy.write_text('[audit]\nrecord = "off"\n[certificates."CN=batch"]\ntenant = "default"\n')
    loaded = _loaded(
        tmp_path,
        TIDEGATE_POLICY_FILE=str(policy),
        TIDEGATE_REDIS_URL="redis://127.0.0.1:1",
        TIDEGATE_REPLICAS="127.0.0.1:1/2",
    )
    assert _addons(loaded) == {"certificates", "redis_limits", "relay"}


@pytest.mark.parametrize("name", ADDONS)
def test_every_addon_can_be_loaded(name):
    assert callable(load(name))


def test_every_addon_is_in_the_table():
    named = {entry.partition(":")[0].split(".")[0] for entry in ADDONS.values()}
    there = {path.stem for path in ADDONS_FOLDER.iterdir() if not path.stem.startswith("__")}
    # What generate shares with the text routes, and with the gRPC door.
    assert there - named == {"streams", "described"}
    assert {addon for _, _, addon, _ in ROUTES} <= set(ADDONS)
