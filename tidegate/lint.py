"""``tidegate lint``: a whole repository checked without a server."""

import re
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tidegate.paths import Paths, json_option, print_json, repository_option
from tidegate.published import PARTS
from tidegate.task_registry import KNOWN

if TYPE_CHECKING:
    from serving.lint.finding import Finding

COLOURS = {"error": "red", "warning": "yellow", "info": "blue"}


def _version(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, int] | None:
    """2.63, 2.63.0; a container's release (25.11) is another number."""
    if value is None:
        return None
    found = re.fullmatch(r"v?(2)\.(\d{1,3})(?:\.\d+)?", value.strip())
    if found is None:
        raise click.BadParameter("write the server's own version, such as 2.51 (container 24.10)")
    return int(found[1]), int(found[2])


@click.command("lint")
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
    help="Version of the server that will serve it, such as 2.63. Default: 2.51, the wheel's.",
)
def command(
    repository: Path | None, as_json: bool, cores: int | None, triton: tuple[int, int] | None
) -> None:
    """Check a model repository (default: model_repository/) without starting a server.

    Works on any Triton repository, written by hand or not. Each finding says what to do. Exits 1
    if there is an error; warnings and infos do not fail.

    \b
    tidegate lint
    tidegate lint ~/server/docs/examples/model_repository --cores 32
    """
    from serving.lint.check import lint
    from serving.lint.newer import TRITON

    paths = Paths.current()
    on_demand = {f"{name}{part}" for name in KNOWN for part in PARTS}
    found = lint(repository or paths.repository, cores or 0, on_demand, triton or TRITON)
    if as_json:
        print_json([asdict(each) for each in found])
    else:
        _print(found)
    sys.exit(1 if any(each.severity == "error" for each in found) else 0)


def _print(found: list["Finding"]) -> None:
    for each in found:
        head = click.style(f"{each.severity.value:7}", fg=COLOURS[each.severity.value])
        click.echo(f"{head} {each.place}: {each.message} [{each.code}]")
        click.echo(f"        {each.fix}")
    counts = Counter(each.severity.value for each in found)
    said = ", ".join(f"{counts[kind]} {kind}" for kind in COLOURS if counts[kind])
    click.echo(said or "nothing to say: it is clean")
