"""``tidegate up`` in a scratch home, on free ports, over a copy of a repository."""

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from loadtests.own_stack.cpu import ProcessTree, stack_process
from loadtests.own_stack.processes import free_ports, start

START_S = 600.0  # a cold machine converts the models first
NO_MORE: Mapping[str, str] = MappingProxyType({})
_FLAGS = (
    "gateway-port",
    "triton-http-port",
    "triton-grpc-port",
    "triton-metrics-port",
    "grpc-port",
    "admin-port",
)


@dataclass(frozen=True)
class OwnStack:
    """The URLs of the gateway and Triton, and the API key; ``triton_grpc`` and ``gateway_grpc`` are
    HOST:PORT. ``repository`` is the scratch copy."""

    gateway: str
    triton: str
    triton_grpc: str
    gateway_grpc: str
    key: str
    repository: Path
    processes: ProcessTree


@contextmanager
def running(
    repository: Path,
    models: Sequence[str],
    replicas: int = 1,
    prepare: Callable[[Path], None] = lambda home: None,
    variables: Mapping[str, str] = NO_MORE,
) -> Iterator[OwnStack]:
    """The stack over a copy of ``repository``, with one gateway worker and so many Tritons; stopped
    on exit. ``prepare`` is called with its home, in which the copy is, before it starts.
    ``variables``: more of its settings, with its home for ``{home}``."""
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as home_name:
        home = Path(home_name)
        copy = home / "model_repository"
        shutil.copytree(repository, copy)
        prepare(home)
        ports = free_ports(len(_FLAGS))
        command = _command(models, ports, replicas)
        more = {name: value.format(home=home) for name, value in variables.items()}
        server = start("tidegate up", command, environment(home) | more, home / "up.log")
        try:
            server.wait_ready(f"http://127.0.0.1:{ports[0]}/readyz", START_S)
            key = (home / ".tidegate" / "dev.key").read_text(encoding="utf-8").strip()
            gateway, triton = (f"http://127.0.0.1:{port}" for port in ports[:2])
            processes = ProcessTree(server.process.pid, stack_process)
            triton_grpc, gateway_grpc = (f"127.0.0.1:{ports[index]}" for index in (2, 4))
            yield OwnStack(gateway, triton, triton_grpc, gateway_grpc, key, copy, processes)
        finally:
            server.stop()


def environment(home: Path) -> dict[str, str]:
    """What makes ``tidegate`` use this home."""
    return {"TIDEGATE_HOME": str(home), "TIDEGATE_REPOSITORY": str(home / "model_repository")}


def _command(models: Sequence[str], ports: list[int], replicas: int) -> list[str]:
    flags = [f"--{flag}={port}" for flag, port in zip(_FLAGS, ports, strict=True)]
    more = ["--workers=1", f"--replicas={replicas}"]
    return [sys.executable, "-m", "tidegate", "up", *models, *more, *flags]
