"""A gateway in front of a Triton that answers at once: what is left is the gateway's own work."""

import hashlib
import hmac
import json
import shutil
import string
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench.errors import BenchError
from loadtests.bench.settings import ROOT
from loadtests.own_stack.cpu import ProcessTree, stack_process
from loadtests.own_stack.processes import Server, free_ports, start
from loadtests.own_stack.stack import NO_MORE

START_S = 120.0
PEPPER = b"p" * 32
LIMIT = """[[limits]]
scope = "tenant"
kind = "requests"
amount = 1000000
window_s = 1

"""


@dataclass(frozen=True)
class GatewayAlone:
    """``key`` is of a user who may ask every model."""

    url: str
    key: str
    processes: ProcessTree
    start_s: float


@contextmanager
def gateway_alone(
    module: str,
    arguments: Sequence[str],
    model: str,
    keys: int = 1,
    tenants: int = 1,
    workers: int = 1,
    *,
    with_redis: bool = False,
    variables: Mapping[str, str] = NO_MORE,
) -> Iterator[GatewayAlone]:
    """In front of ``python -m MODULE PORT ARGUMENTS``, a fake Triton; stopped on exit. It counts
    its limit in memory or, ``with_redis``, in a Redis of its own. ``variables``: more of its
    settings, with its folder for ``{home}``."""
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder, ExitStack() as stack:
        home = Path(folder)
        gateway_port, triton_port = free_ports(2)
        instant = [sys.executable, "-m", module, str(triton_port), *arguments]
        stack.callback(
            start(
                "the instant Triton", instant, {"PYTHONPATH": str(ROOT)}, home / "triton.log"
            ).stop
        )
        key = write_keys(home, keys, tenants)
        environment = {
            "PYTHONPATH": str(ROOT),
            "TIDEGATE_GATEWAY_PORT": str(gateway_port),
            "TIDEGATE_ADMIN_PORT": "0",
            "TIDEGATE_GRPC_PORT": "0",
            "TIDEGATE_REPLICAS": f"127.0.0.1:{triton_port}",
            "TIDEGATE_PIPELINES": model,
            "TIDEGATE_WORKERS": str(workers),
            "TIDEGATE_KEYS_FILE": str(home / "keys.toml"),
            "TIDEGATE_PEPPER_FILE": str(home / "pepper"),
            "TIDEGATE_POLICY_FILE": str(home / "gateway.toml"),
            "TIDEGATE_STATE_FOLDER": str(home),
            **{name: value.format(home=home) for name, value in variables.items()},
        }
        if with_redis:
            (redis_port,) = free_ports(1)
            environment["TIDEGATE_REDIS_URL"] = f"redis://127.0.0.1:{redis_port}"
            stack.callback(_start_redis(redis_port, home).stop)
        started = time.monotonic()
        server = start(
            "the gateway", [sys.executable, "-m", "gateway"], environment, home / "gateway.log"
        )
        stack.callback(server.stop)
        url = f"http://127.0.0.1:{gateway_port}"
        server.wait_ready(f"{url}/readyz", START_S)
        start_s = time.monotonic() - started
        yield GatewayAlone(url, key, ProcessTree(server.process.pid, stack_process), start_s)


def _start_redis(port: int, home: Path) -> Server:
    """The gateway waits for it, and counts by itself until then."""
    program = shutil.which("redis-server")
    if program is None:
        raise BenchError("redis-server is missing: apt-get install redis-server")
    command = [
        program,
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--dir",
        str(home),
    ]
    return start("Redis", command, {}, home / "redis.log")


def write_keys(home: Path, keys: int = 1, tenants: int = 1) -> str:
    """``keys.toml``, the pepper, and a ``gateway.toml`` with a limit; returns the last key."""
    tables, key = [], ""
    for number in range(keys):
        key_id = f"{number:012}"
        key = f"tg_{key_id}_{string.ascii_letters[:43]}_000000"
        fields = {
            "name": f"key {number}",
            "hmac": hmac.digest(PEPPER, key.encode(), hashlib.sha256).hex(),
            "created": "2026-01-01T00:00:00+00:00",
            "revoked": "",
            "expires": "",
            "tenant": f"tenant{number % tenants}",
            "roles": ["user"],
            "models": ["*"],
            "scopes": ["read", "infer"],
        }
        lines = [f"{name} = {json.dumps(value)}" for name, value in fields.items()]
        tables.append("\n".join([f"[keys.{key_id}]", *lines]))
    (home / "keys.toml").write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    (home / "pepper").write_bytes(PEPPER)
    tables_of_tenants = (f'[tenants.tenant{number}]\nmodels = ["*"]\n' for number in range(tenants))
    (home / "gateway.toml").write_text(
        LIMIT + "".join(tables_of_tenants) + "# end\n", encoding="utf-8"
    )
    return key
