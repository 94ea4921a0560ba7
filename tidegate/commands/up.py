"""``tidegate up``: convert missing pipelines, start Triton and the gateway, keep them running."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import click

from tidegate.app.paths import Paths
from tidegate.app.stack import Stack, StackOptions, serve
from tidegate.commands.options import json_option, repository_option

F = TypeVar("F", bound=Callable[..., Any])


def _port(flag: str, default: int, description: str) -> Callable[[F], F]:
    variable = f"TIDEGATE_{flag.upper().replace('-', '_')}"
    return click.option(
        f"--{flag}",
        type=click.IntRange(1, 65535),
        default=default,
        envvar=variable,
        show_default=True,
        show_envvar=True,
        help=description,
    )


def _file(flag: str, description: str) -> Callable[[F], F]:
    variable = f"TIDEGATE_{flag.upper().replace('-', '_')}"
    return click.option(
        f"--{flag}",
        type=click.Path(),
        default="",
        envvar=variable,
        show_envvar=True,
        help=description,
    )


@click.command("up", short_help="Convert what is missing, serve, and print how to call it")
@click.argument("pipelines", nargs=-1)
@click.option(
    "--host",
    default="127.0.0.1",
    envvar="TIDEGATE_HOST",
    show_default=True,
    show_envvar=True,
    help="Address the gateway listens on.",
)
@_port("gateway-port", 8080, "The gateway.")
@_port("grpc-port", 8081, "The gateway's gRPC API.")
@click.option(
    "--grpc-certificate-port",
    type=click.IntRange(0, 65535),
    default=0,
    envvar="TIDEGATE_GRPC_CERTIFICATE_PORT",
    show_default=True,
    show_envvar=True,
    help="The gRPC API for clients with a certificate (0: off).",
)
@_file("tls-certificate-file", "Certificate of the gateway (PEM, with its chain): TLS everywhere.")
@_file("tls-key-file", "Its key.")
@_file("tls-client-ca-file", "Certificate authorities trusted for client certificates.")
@_port("admin-port", 8082, "The operator's listener: /metrics and /admin.")
@_port("triton-http-port", 8000, "Triton, HTTP.")
@_port("triton-grpc-port", 8001, "Triton, gRPC.")
@_port("triton-metrics-port", 8002, "Triton, metrics.")
@click.option(
    "--replicas",
    type=click.IntRange(1, 64),
    default=1,
    envvar="TIDEGATE_REPLICA_COUNT",
    show_default=True,
    show_envvar=True,
    help="Number of Triton servers behind the gateway; replica K listens on ports 10*K higher.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=1,
    envvar="TIDEGATE_WORKERS",
    show_default=True,
    show_envvar=True,
    help="Number of gateway processes.",
)
@click.option(
    "--config",
    default="auto",
    envvar="TIDEGATE_CONFIG",
    show_default=True,
    show_envvar=True,
    help="Serve with each model's configs/NAME.pbtxt where it has one: tuned, gpu, tensorrt. "
    "auto: gpu, if there is one that Triton can use, else tuned, if anything was tuned; "
    "default: the main configs.",
)
@click.option(
    "--gpu-metrics/--no-gpu-metrics",
    default=True,
    envvar="TIDEGATE_GPU_METRICS",
    show_default=True,
    show_envvar=True,
    help="Triton's metrics of GPUs; turn them off where Triton ends while it reads them.",
)
@click.option(
    "--lint/--no-lint",
    default=True,
    envvar="TIDEGATE_LINT",
    show_default=True,
    show_envvar=True,
    help="Refuse to start if `tidegate lint` finds an error in a model to be served.",
)
@click.option(
    "--load-timeout",
    type=click.FloatRange(1),
    default=300.0,
    envvar="TIDEGATE_LOAD_TIMEOUT_S",
    show_default=True,
    show_envvar=True,
    help="Seconds that a model may take to load.",
)
@click.option(
    "--log-bytes",
    type=click.IntRange(64 * 1024),
    default=64 * 1024 * 1024,
    envvar="TIDEGATE_LOG_BYTES",
    show_default=True,
    show_envvar=True,
    help="Size (bytes) at which gateway.log and triton.log are rotated.",
)
@click.option(
    "--log-files",
    type=click.IntRange(0, 1000),
    default=4,
    envvar="TIDEGATE_LOG_FILES",
    show_default=True,
    show_envvar=True,
    help="Number of rotated files to keep of each.",
)
@repository_option
@json_option
def command(as_json: bool, **options: Any) -> None:
    """Convert missing pipelines, start Triton and the gateway, and serve until Ctrl-C.

    PIPELINES are the ones to serve; one that `tidegate train` knows is trained first. Default: the
    known ones, the whole customer service and every model in model_repository/. The small model
    identity_fp32, which checks use, is served with them.

    --json: once everything is served, prints one line on stdout: the `running` object of
    `tidegate status --json`. Everything else goes to stderr.

    \b
    tidegate up
    tidegate up text_embedding --gateway-port 9090
    tidegate up text_embedding --replicas 2
    """
    from serving.health.events import unfailing
    from serving.triton.ports import Ports

    triton = Ports(
        *(options.pop(f"triton_{protocol}_port") for protocol in ("http", "grpc", "metrics"))
    )
    report = unfailing(partial(click.echo, err=as_json))
    stack_options = StackOptions(Paths.current(), triton=triton, as_json=as_json, **options)
    serve(Stack(stack_options, report))
