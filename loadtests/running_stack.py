"""The stack that runs in this home, from the file in which ``tidegate up`` describes it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loadtests.preflight import CannotStart
from modelspec.files import lock


@dataclass(frozen=True)
class RunningStack:
    """The gateway's URL and its gRPC port (HOST:PORT, '' if that is not known), and the gRPC port
    of the first Triton."""

    url: str
    gateway_grpc: str
    triton_grpc: str


NOTHING_RUNS = RunningStack("http://127.0.0.1:8080", "", "127.0.0.1:8001")


def running_stack(environ: Mapping[str, str]) -> RunningStack:
    """That of the home (TIDEGATE_HOME, else this folder), or the usual ports if none runs there.
    CannotStart while it is starting."""
    path = Path(environ.get("TIDEGATE_HOME", ".")) / ".tidegate" / "up.json"
    try:
        with path.open(encoding="utf-8") as file:
            if lock(file, shared=True):  # the stack holds it as long as it runs
                return NOTHING_RUNS
            running = json.load(file)
        if not running["is_ready"]:
            phase = f" ({running['phase']})" if running.get("phase") else ""
            raise CannotStart(f"the stack in {running['home']} is still starting{phase}")
        grpc = f"127.0.0.1:{running['triton']['grpc']}"
        return RunningStack(running["url"], running.get("grpc", ""), grpc)
    except (OSError, ValueError, LookupError, TypeError):  # none, or it is being written
        return NOTHING_RUNS
