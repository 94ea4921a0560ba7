"""``python -m loadtests.clients``: a table of third-party clients' calls to the gateway."""

import os
import sys
from pathlib import Path

import click

from loadtests.clients.calls import Outcome, Stack, kserve, perf_analyzer
from loadtests.preflight import CannotStart, check_gateway, find_key

FOLDER = Path(".venv-clients")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--url", default="http://127.0.0.1:8080", envvar="TIDEGATE_URL", help="The gateway.")
@click.option("--grpc-address", default="127.0.0.1:8081", help="Its gRPC API.")
@click.option(
    "--kserve-python",
    type=click.Path(path_type=Path),
    default=FOLDER / "kserve/bin/python",
    help="A Python with the kserve package.",
)
@click.option(
    "--perf-analyzer",
    type=click.Path(path_type=Path),
    default=FOLDER / "perf_analyzer/bin/perf_analyzer",
    help="NVIDIA's perf_analyzer.",
)
def command(url: str, grpc_address: str, kserve_python: Path, perf_analyzer: Path) -> None:
    """Run KServe's client and NVIDIA's perf_analyzer against the running stack.

    `make clients` installs both. The key is TIDEGATE_API_KEY, else the dev key. Exit codes: 0 all
    calls succeeded; 1 one failed; 2 could not start.
    """
    try:
        stack = Stack(url.rstrip("/"), grpc_address, find_key(os.environ), kserve_python,
                        perf_analyzer)  # fmt: skip
        check_gateway(stack.url, stack.key)
        for program in (kserve_python, perf_analyzer):
            if not program.exists():
                raise CannotStart(f"there is no {program}: run `make clients` to install it")
    except CannotStart as error:
        click.secho(f"loadtests.clients: {error}", fg="red", err=True)
        sys.exit(2)
    sys.exit(_run(stack))


def _run(stack: Stack) -> int:
    failed = 0
    for outcome in (*kserve(stack), *perf_analyzer(stack)):
        click.echo(_line(outcome))
        failed += bool(outcome.fault)
    click.echo("all calls succeeded" if not failed else f"{failed} failed")
    return 1 if failed else 0


def _line(outcome: Outcome) -> str:
    state = click.style("FAILED", fg="red") if outcome.fault else "ok    "
    return f"{state}  {outcome.client:22}  {outcome.what:26}  {outcome.fault or outcome.note}"


if __name__ == "__main__":
    command(prog_name="python -m loadtests.clients")
