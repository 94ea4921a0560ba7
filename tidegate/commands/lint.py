"""``tidegate lint``: check a whole repository without a server."""

import re
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelspec.names import possible_models
from tidegate.app.paths import Paths
from tidegate.app.task_registry import KNOWN
from tidegate.commands.exit_code import ExitCode
from tidegate.commands.options import json_option, repository_option
from tidegate.commands.output import print_json

if TYPE_CHECKING:
    from serving.lint.finding import Finding

COLOURS = {"error": "red", "warning": "yellow", "info": "blue"}


def _version(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, int] | None:
    """Parse 2.63 or 2.63.0; a container's release (25.11) is a different number."""
    if value is None:
        return None
    match = re.fullmatch(r"v?(2)\.(\d{1,3})(?:\.\d+)?", value.strip())
    if match is None:
        raise click.BadParameter(
            "pass the server's own version, such as 2.51 (for container 24.10)"
        )
    return int(match[1]), int(match[2])


@click.command("lint", short_help="Check a whole repository without a server")
@click.argument("repository", required=False, type=click.Path(path_type=Path))
@repository_option
@json_option
@click.option(
    "--cores", type=click.IntRange(1), help="Cores of the serving machine. Default: this one's."
)
@click.option(
    "--triton",
    metavar="VERSION",
    callback=_version,
    help="Version of the server that will serve it, such as 2.63. Default: 2.51, as in the wheel.",
)
def command(
    repository: Path | None, as_json: bool, cores: int | None, triton: tuple[int, int] | None
) -> None:
    """Check a model repository (default: model_repository/) without starting a server.

    Works on any Triton repository, hand-written or not. Each finding says what to do. Exits 1 if
    there is an error; warnings and infos do not count.

    \b
    tidegate lint
    tidegate lint ~/server/docs/examples/model_repository --cores 32
    """
    from serving.lint.check import lint
    from serving.lint.newer import TRITON
    from serving.repository.model_repository import ModelRepository

    paths = Paths.current()
    on_demand = {model for name in KNOWN for model in possible_models(name)}
    findings = lint(
        ModelRepository(repository or paths.repository), cores or 0, on_demand, triton or TRITON
    )
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        _print(findings)
    has_errors = any(finding.severity == "error" for finding in findings)
    sys.exit(ExitCode.FAILED if has_errors else ExitCode.DONE)


def _print(findings: list["Finding"]) -> None:
    for finding in findings:
        head = click.style(f"{finding.severity.value:7}", fg=COLOURS[finding.severity.value])
        click.echo(f"{head} {finding.location}: {finding.message} [{finding.code}]")
        click.echo(f"        {finding.fix}")
    counts = Counter(finding.severity.value for finding in findings)
    summary = ", ".join(
        f"{counts[severity]} {severity}" for severity in COLOURS if counts[severity]
    )
    click.echo(summary or "no findings")
