"""``python -m loadtests``: check that the stack answers, then become Locust."""

import importlib.util
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from loadtests.preflight import (
    CannotStart,
    check_gateway,
    check_triton,
    check_ui_port,
    find_key,
    parse_weights,
)
from loadtests.running_stack import NOTHING_RUNS, running_stack
from loadtests.signoff.preflight import pipeline_of
from loadtests.signoff.slo import APIS
from loadtests.texts import CorpusMissing, real_texts

F = TypeVar("F", bound=Callable[..., Any])
PORT = click.IntRange(1, 65535)
LOCUSTFILE = Path(__file__).with_name("locustfile.py")
USER_CLASSES = {"rest": "RestUser", "grpc": "TritonUser", "pipeline": "PipelineUser"}
_OF_EMBEDDING = ("rest", "grpc")
_DEFAULT = "Default: that of the stack that runs in this home, else"
# At the end Locust waits for requests in flight until they time out (locustfile.py: 35 s): dropping
# them would drop the slowest, and a server that hangs would pass.
STOP_S = 40


@dataclass(frozen=True)
class Options:
    """The flags; see ``--help``."""

    headless: bool
    url: str
    grpc_address: str
    only: str | None
    pipeline: str
    api: tuple[str, ...]
    gateway_grpc: str
    users: int
    spawn_rate: float
    run_time: str
    max_p99_ms: float | None
    json: Path | None
    ui_port: int

    @property
    def protocols(self) -> list[str]:
        if self.pipeline:
            return ["pipeline"]
        return [self.only] if self.only else [*_OF_EMBEDDING]


def locust_arguments(options: Options) -> list[str]:
    """Locust's command line, without the key: other users of the machine can read it."""
    arguments = ["-f", str(LOCUSTFILE), "--host", options.url]
    arguments += ["--grpc-address", options.grpc_address]
    arguments += ["--users", str(options.users), "--spawn-rate", str(options.spawn_rate)]
    arguments += ["--stop-timeout", str(STOP_S)]
    if options.max_p99_ms is not None:
        arguments += ["--max-p99-ms", str(options.max_p99_ms)]
    if options.pipeline:
        arguments += ["--pipeline", options.pipeline]
        arguments += ["--gateway-grpc-address", options.gateway_grpc]
        arguments += [part for api in options.api for part in ("--api", api)]
    if options.json:
        arguments += ["--summary-file", str(options.json)]
    if options.headless:
        arguments += ["--headless", "--only-summary", "--run-time", options.run_time]
    else:
        arguments += ["--web-host", "127.0.0.1", "--web-port", str(options.ui_port)]
    return [*arguments, *(USER_CLASSES[protocol] for protocol in options.protocols)]


def check(options: Options) -> None:
    """Raises CannotStart or CorpusMissing when the run would be meaningless."""
    if importlib.util.find_spec("locust") is None:
        raise CannotStart("Locust is not installed: pip install 'tidegate[load]'")
    real_texts()
    if options.users < len(options.protocols):
        protocols = " and ".join(options.protocols)
        raise CannotStart(f"--users {options.users} is too few for {protocols}")
    if not options.headless:
        check_ui_port(options.ui_port)
    if options.pipeline:
        pipeline = pipeline_of(options.url, options.pipeline, find_key(os.environ))
        for api in parse_weights(options.api):
            if api not in APIS:
                raise CannotStart(f"--api {api}: choose from {', '.join(APIS)}")
            if api.startswith("grpc") and not options.gateway_grpc:
                raise CannotStart(f"--api {api} needs the gateway's port: --gateway-grpc HOST:PORT")
        if not options.api:
            click.echo(f"{pipeline.name} over its API {pipeline.default_api!r}", err=True)
    elif options.api:
        raise CannotStart("--api is of the pipeline of --pipeline: name one")
    if "rest" in options.protocols:
        check_gateway(options.url.rstrip("/"), find_key(os.environ))
    if "grpc" in options.protocols:
        check_triton(options.grpc_address)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)


def _addresses(
    url: str | None, grpc_address: str | None, gateway_grpc: str | None, **_: Any
) -> dict[str, str]:
    """Of the flags that were omitted, those of the stack that runs here. A gateway elsewhere has
    its own gRPC port."""
    running = NOTHING_RUNS if url and grpc_address else running_stack(os.environ)
    if url and gateway_grpc is None:
        gateway_grpc = running.gateway_grpc if url.rstrip("/") == running.url else ""
    return {
        "url": (url or running.url).rstrip("/"),
        "grpc_address": grpc_address or running.triton_grpc,
        "gateway_grpc": running.gateway_grpc if gateway_grpc is None else gateway_grpc,
    }


def _run_time(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"[1-9]\d*[smh]?", value):
        raise click.BadParameter("pass seconds, or for example 90s, 5m, 1h")
    return value


def _flag(name: str, default: Any, description: str, **options: Any) -> Callable[[F], F]:
    """An option whose help shows its default and its environment variable."""
    options |= {"show_default": default is not None, "show_envvar": "envvar" in options}
    return click.option(f"--{name}", default=default, help=description, **options)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--headless", is_flag=True, help="No UI: run at once, print the results, exit.")
@_flag(
    "url",
    None,
    f"The gateway. {_DEFAULT} {NOTHING_RUNS.url}.",
    envvar="TIDEGATE_URL",
)
@_flag(
    "grpc-address",
    None,
    f"Triton's gRPC port. {_DEFAULT} {NOTHING_RUNS.triton_grpc}.",
    envvar="TIDEGATE_TRITON_GRPC_ADDRESS",
)
@_flag(
    "only",
    None,
    "Only users of this protocol. Default: both.",
    type=click.Choice(_OF_EMBEDDING),
)
@_flag("pipeline", "", "Load this pipeline instead, over the gateway's APIs.")
@click.option(
    "--api",
    multiple=True,
    metavar="API[=WEIGHT]",
    help=f"With --pipeline: {', '.join(APIS)}; several for a mix. Default: its first.",
)
@_flag(
    "gateway-grpc",
    None,
    "The gateway's gRPC port, HOST:PORT, for the APIs over gRPC. Default: that of the stack that "
    "runs in this home.",
)
@_flag("users", 16, "Concurrent users, half of each protocol.", type=click.IntRange(1))
@_flag("spawn-rate", 8.0, "Users started per second.", type=click.FloatRange(0, min_open=True))
@_flag("run-time", "15s", "How long a headless run lasts: 90s, 5m, 1h.", callback=_run_time)
@_flag("max-p99-ms", None, "Fail if a route's p99 exceeds this.", type=click.FloatRange(0))
@_flag("json", None, "Write the figures to this file.", type=click.Path(path_type=Path))
@_flag("ui-port", 8089, "Locust's UI.", type=PORT, envvar="TIDEGATE_LOCUST_PORT")
def command(**flags: Any) -> None:
    """Load-test the stack that runs in this home: REST through the gateway, gRPC to Triton itself.

    The API key is TIDEGATE_API_KEY, else the one in .tidegate/dev.key (under TIDEGATE_HOME).

    \b
    python -m loadtests                         Locust's UI on http://127.0.0.1:8089
    python -m loadtests --headless              a table and an exit code
    python -m loadtests --headless --only rest --users 4 --run-time 1m --max-p99-ms 250
    python -m loadtests --headless --pipeline chat --api chat=3 --api grpc-stream

    \b
    Exit codes: 0 passed; 1 a request failed, no user of a protocol made one, or a p99 exceeded
    its limit; 2 could not start.
    """
    try:
        options = Options(**{**flags, **_addresses(**flags)})
        check(options)
    except (CannotStart, CorpusMissing) as error:
        click.secho(f"loadtests: {error}", fg="red", err=True)
        sys.exit(2)
    if not options.headless:
        click.echo(f"Locust's UI: http://127.0.0.1:{options.ui_port} (Ctrl-C stops it)")
    # In place of this process: Ctrl-C, SIGTERM and the exit code are Locust's own.
    arguments = [sys.executable, "-m", "locust", *locust_arguments(options)]
    sys.stdout.flush()
    os.execv(sys.executable, arguments)  # noqa: S606 (our own argument list, no shell)


if __name__ == "__main__":
    command(prog_name="python -m loadtests")
