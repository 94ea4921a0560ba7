"""What a setting, a policy or a request turns on is imported then, and not before."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gateway

FOLDER = Path(gateway.__file__).parent
# Modules that most gateways never need.
OPTIONAL = {
    "gateway.api.admin.listener",
    "gateway.api.admin.routes",
    "gateway.api.grpc",
    "gateway.api.openai.completions",
    "gateway.api.openai.token_ids",
    "gateway.api.tasks.multipart",
    "gateway.api.v2.generate",
    "gateway.http.tls",
    "gateway.identity.certificates",
    "gateway.identity.tokens",
    "gateway.limits.redis",
    "gateway.models.metering",
    "gateway.models.text_binding",
    "gateway.policy.canary",
    "gateway.request_log",
    "gateway.response_cache",
    "gateway.shadowing",
    "gateway.tracing",
    "gateway.upstream.dns_lookup",
    "gateway.upstream.http_upstream",
    "gateway.upstream.shared_drains",
}
# Needed by those only, or, like pydantic.v1, by none.
LIBRARIES = (
    *("redis", "jwt", "httpx", "jinja2", "cryptography", "dns", "pydantic.v1"),
    "opentelemetry.sdk",
)
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
    variables = {**os.environ, "PYTHONPATH": str(FOLDER.parent), **environ}
    run = subprocess.run(
        [sys.executable, "-c", OPENED], capture_output=True, text=True, cwd=tmp_path, env=variables
    )
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout))


@pytest.mark.parametrize("name", sorted(OPTIONAL))
def test_every_optional_part_is_there(name):
    path = FOLDER.parent / name.replace(".", "/")
    assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def test_only_the_application_knows_the_apis():
    """The core imports no API: what the APIs share is below them."""
    allowed = {FOLDER / "app.py"}
    for path in set(FOLDER.rglob("*.py")) - allowed:
        if FOLDER / "api" not in path.parents:
            wrong = {name for name in _imports(path) if name.startswith("gateway.api")}
            assert not wrong, f"{path.relative_to(FOLDER)} imports {sorted(wrong)}"


def test_a_gateway_with_default_settings_loads_no_optional_part(tmp_path):
    loaded = _loaded(tmp_path)
    assert not loaded & OPTIONAL
    assert not loaded.intersection(LIBRARIES)
    assert "gateway.audit.log" in loaded


def test_settings_and_policy_turn_parts_on(tmp_path):
    policy = tmp_path / "gateway.toml"
    policy.write_text('[audit]\nrecord = "off"\n[certificates."CN=batch"]\ntenant = "default"\n')
    loaded = _loaded(
        tmp_path,
        TIDEGATE_POLICY_FILE=str(policy),
        TIDEGATE_REDIS_URL="redis://127.0.0.1:1",
        TIDEGATE_REPLICAS="127.0.0.1:1/2,dns:triton.example:1",
        TIDEGATE_DNS_SERVER="127.0.0.1:1",
    )
    assert loaded & OPTIONAL == {
        "gateway.identity.certificates",
        "gateway.limits.redis",
        "gateway.upstream.dns_lookup",
        "gateway.upstream.http_upstream",
        "gateway.upstream.shared_drains",
    }
    assert "gateway.audit.log" not in loaded
