"""The API's description is valid, complete, and every example in it works."""

import re
import subprocess

import httpx
import pytest
from openapi_spec_validator import validate

from tests.running import ROOT


@pytest.fixture(scope="module")
def document(stack):
    return httpx.get(f"{stack.url}/openapi.json").json()


def _operations(document):
    for path, item in document["paths"].items():
        parameters = {p["name"]: p["example"] for p in item.get("parameters", [])}
        for method in ("get", "post"):
            if method in item:
                yield method, path.format(**parameters), item[method]


def test_it_is_valid_openapi(document):
    validate(document)


def test_every_example_works(stack, document):
    count = 0
    for method, path, operation in _operations(document):
        content = operation.get("requestBody", {}).get("content", {})
        examples = content.get("application/json", {}).get("examples", {"none": {"value": None}})
        assert content == {} or "application/json" in content
        for example in examples.values():
            response = httpx.request(
                method, stack.url + path, json=example["value"], headers=stack.headers, timeout=30
            )
            assert response.status_code == 200, f"{method} {path}: {response.text[:300]}"
            count += 1
    assert count > 15


async def test_every_route_of_the_gateway_is_described(document):
    from gateway.app import create_app
    from gateway.settings import Settings

    own_pages = {
        "/docs",
        "/redoc",
        "/openapi.json",
        "/docs/docs.js",
        "/",
        "/static-offline-docs/{name}",
        "/internal/decide",  # called by nginx (docs/grpc.md)
    }
    routes = {route.path for route in create_app(Settings()).app.routes} - own_pages
    # tests/e2e/test_openai_chat.py, tests/gateway/api/openai/test_tokenization.py
    text_routes = {"/v1/chat/completions", "/v1/completions", "/v1/responses"}
    elsewhere = text_routes | {"/tokenize", "/detokenize"}
    assert routes - {"/v1/{endpoint}"} - elsewhere <= set(document["paths"])
    assert (
        "/v1/text_embedding" in document["paths"]
    )  # the catch-all, described by the routes it serves


def test_the_docs_page_loads_nothing_external(stack):
    page = httpx.get(f"{stack.url}/docs").text
    links = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert links
    for link in links:
        assert link.startswith("/"), link
        assert httpx.get(stack.url + link).status_code == 200


def test_only_health_and_documentation_need_no_key(stack, document):
    for method, path, _ in _operations(document):
        status = httpx.request(method, stack.url + path).status_code
        assert (status == 401) == (path not in {"/healthz", "/readyz"}), path


def _commands(language: str) -> list[str]:
    """The README's code blocks in one language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def _adapted(stack, command: str) -> str:
    """The README's command, on this run's ports and environment."""
    port = f"http://127.0.0.1:{stack.gateway_port}"
    return (
        command.replace("http://127.0.0.1:8080", port)
        .replace(".venv/bin/tidegate", "python -m tidegate")
        .replace("make demo", f"make -f {ROOT}/Makefile demo VENV=.env")
    )


@pytest.fixture
def environment(stack):
    """The environment of the README's commands, which run in the stack's home."""
    import os
    import sys
    from pathlib import Path

    env = stack.home / ".env"
    (env / "bin").mkdir(parents=True, exist_ok=True)
    for name in ("tidegate", "python"):
        link = env / "bin" / name
        if not link.exists():
            link.symlink_to(Path(sys.executable).parent / name)
    for name in ("pyproject.toml", "constraints.txt"):
        if not (stack.home / name).exists():
            (stack.home / name).symlink_to(ROOT / name)
    stamp = env / ".up"
    stamp.touch()
    # What `make test ARGS=...` was given is not meant for the README's `make demo`.
    inherited = {k: v for k, v in os.environ.items() if k not in ("ARGS", "MAKEFLAGS", "MFLAGS")}
    return {
        **inherited,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TIDEGATE_HOME": str(stack.home),
        "TIDEGATE_URL": stack.url,
        "TIDEGATE_TRITON_GRPC_ADDRESS": stack.grpc_address,
    }


def test_every_shell_command_of_the_readme_works(stack, environment):
    blocks = _commands("sh")
    assert blocks[0].split()[:2] == ["make", "up"]  # the ones that started this stack and this test
    assert "make test" in blocks[0]
    for block in blocks[1:]:
        run = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", _adapted(stack, block)],
            cwd=stack.home,
            env=environment,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert run.returncode == 0, run.stdout + run.stderr
        assert '"embedding"' in run.stdout
        assert "How near the sentences are" in run.stdout
        assert "Paris" in run.stdout
        assert "tg_" in run.stdout
        assert '"code"' not in run.stdout  # no problem+json among the responses


def test_every_python_example_of_the_readme_works(stack, environment):
    for code in _commands("python"):
        run = subprocess.run(
            ["python", "-c", _adapted(stack, code)],
            cwd=stack.home,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert run.returncode == 0, run.stderr
        size, *answer = run.stdout.splitlines()
        assert size == "384"
        assert answer
