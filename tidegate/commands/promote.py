"""``tidegate promote NAME``: make the canary's version the active one."""

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


@click.command("promote", short_help="Send everyone to the canary's version")
@click.argument("name")
@click.option(
    "--version", type=click.IntRange(1), help="The version, if gateway.toml routes to several."
)
@repository_option
@servers_option
@grace_option
@json_option
def command(
    name: str,
    version: int | None,
    addresses: tuple[str, ...],
    grace_s: float,
    as_json: bool,
) -> None:
    """Serve the canary's version of the pipeline NAME to everyone, and end the canary.

    The canary is the version that callers are routed to now ([routes] in gateway.toml).

    --json: its pipeline, version, repository, served_by, no_answer_from and before (the version
    that was active, or null).

    \b
    tidegate promote text_embedding
    """
    from tidegate.app.canaries import promote_canary

    interrupt_on_sigterm()
    with progress(err=as_json) as report:
        outcome = promote_canary(Paths.current(), name, version, report, grace_s, addresses)
    if as_json:
        print_json({**outcome.as_dict(), "before": outcome.before or None})
    elif outcome.served_by and not outcome.silent:
        click.echo(f"{name}: version {outcome.version} serves everyone")
    else:
        click.echo(outcome.line())
    if outcome.before and not as_json:
        click.echo(f"To undo: tidegate rollback {name} --to {outcome.before}")
