"""``tidegate status``: what is running in this home, since when, its health, and its logs."""

import sys

import click

from tidegate.app.paths import Paths
from tidegate.commands.exit_code import ExitCode
from tidegate.commands.options import json_option, stack_option
from tidegate.commands.output import print_json


@click.command("status", short_help="What is running here, its health, and its logs")
@json_option
@stack_option
def command(as_json: bool) -> None:
    """Show what is running in this home (TIDEGATE_HOME, else this folder): the gateway, Triton, the
    pipelines with the versions that are served, canaries and shadows, since when, the last events,
    and where the logs are. While it starts: what it does now.

    Exit codes: 0 healthy, also while `tidegate restart` restarts a Triton; 1 it runs but is
    unhealthy, or is still starting; 3 nothing is running.

    \b
    tidegate status
    tidegate status --json
    """
    from tidegate.app.status import NothingRunning, status

    report = status(Paths.current())
    if as_json:
        print_json(report.as_dict())
    else:
        for line in report.lines():
            click.echo(line)
    if isinstance(report, NothingRunning):
        sys.exit(ExitCode.NOTHING)
    sys.exit(ExitCode.DONE if report.is_healthy else ExitCode.FAILED)
