"""``tidegate canary NAME``: send part of the traffic to another version."""

from typing import TYPE_CHECKING

import click

from tidegate.app.paths import Paths
from tidegate.app.signals import interrupt_on_sigterm
from tidegate.commands.options import (
    grace_option,
    json_option,
    repository_option,
    servers_option,
)
from tidegate.commands.output import print_json, progress

if TYPE_CHECKING:
    from tidegate.app.routes_file import Per


@click.command("canary", short_help="Send part of the traffic to another version")
@click.argument("name")
@click.option("--version", type=click.IntRange(1), help="Default: the newest that is not active.")
@click.option(
    "--weight", type=click.IntRange(0, 100), required=True, help="Percent; 0 ends the canary."
)
@click.option(
    "--per",
    type=click.Choice(["caller", "request"]),
    help="What --weight is a percentage of. caller (the default): a caller, by key, token or "
    "certificate, always gets the same version, so an application with one key gets all or "
    "nothing. request: each request is assigned on its own. If omitted, a running canary keeps its "
    "setting.",
)
@repository_option
@servers_option
@grace_option
@json_option
def command(
    name: str,
    version: int | None,
    weight: int,
    per: "Per | None",
    addresses: tuple[str, ...],
    grace_s: float,
    as_json: bool,
) -> None:
    """Send part of the callers of NAME, or of its requests, to another of its versions.

    The version is served beside NAME as NAME.v7 and its golden sample is checked; then its weight
    is written to the gateway.toml of each stack that serves the repository. One canary runs at a
    time. `tidegate promote NAME` ends it by moving everyone to it.

    --json: pipeline, repository, canaries (name, version, percent, per), gone, served_by and
    no_answer_from.

    \b
    tidegate canary text_embedding --weight 10
    tidegate canary text_embedding --weight 10 --per request
    tidegate canary text_embedding --weight 0
    """
    from tidegate.app.canaries import CanaryOptions, set_canary

    interrupt_on_sigterm()
    options = CanaryOptions(name, weight, version, per)
    with progress(err=as_json) as report:
        change = set_canary(options, Paths.current(), report, grace_s, addresses)
    if as_json:
        print_json(change.as_dict())
        return
    for line in change.lines():
        click.echo(line)
