"""``tidegate rollback NAME``: serve an earlier version again."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tidegate.app.paths import Paths
from tidegate.app.signals import interrupt_on_sigterm
from tidegate.commands.options import (
    grace_option,
    json_option,
    repositories_option,
    servers_option,
)
from tidegate.commands.output import print_outcomes, progress

if TYPE_CHECKING:
    from serving.publish.deployment import Deployment


@click.command("rollback", short_help="Serve an earlier version again")
@click.argument("name")
@click.option(
    "--to",
    "version",
    type=click.IntRange(1),
    help="The version. Default: the one before the active one.",
)
@repositories_option
@servers_option
@grace_option
@json_option
def command(
    name: str,
    version: int | None,
    repositories: tuple[Path, ...],
    addresses: tuple[str, ...],
    grace_s: float,
    as_json: bool,
) -> None:
    """Serve an earlier version of the pipeline NAME again (or, with --to, a later one).

    Its files are checked against its manifest, and it must answer its golden sample, before the pin
    moves. No request fails. Works with Triton up or down.

    --json: a list with, for each repository, pipeline, version, repository, served_by and
    no_answer_from.

    \b
    tidegate rollback text_embedding
    tidegate rollback text_embedding --to 3
    """
    from serving.publish.versions import switch_to
    from tidegate.app.rollout import RolloutOptions, roll_out

    interrupt_on_sigterm()
    options = RolloutOptions(repositories, addresses, grace_s)

    def change(deployment: "Deployment") -> tuple[str, int]:
        return name, switch_to(deployment, name, version)

    with progress(err=as_json) as report:
        print_outcomes(roll_out(change, options, Paths.current(), report), as_json=as_json)
