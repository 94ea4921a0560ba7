"""``tidegate restart``: restart the Tritons of the running stack one after the other."""

from datetime import timedelta

import click

from tidegate.app.paths import Paths
from tidegate.app.signals import interrupt_on_sigterm
from tidegate.commands.options import Duration, json_option, stack_option
from tidegate.commands.output import print_json, progress


@click.command("restart", short_help="Restart the Tritons one by one; no request fails")
@click.option(
    "--replica",
    type=click.IntRange(0),
    help="Only this one; the first is 0. Default: all, one after the other.",
)
@click.option(
    "--drain-timeout",
    type=Duration(),
    default="60s",
    show_default=True,
    help="How long the requests under way on a replica may take to end.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Restart it even if requests fail: the only replica, or one that is not idle in time.",
)
@json_option
@stack_option
def command(replica: int | None, drain_timeout: timedelta, force: bool, as_json: bool) -> None:
    """Restart the Tritons of the running stack (tidegate up --replicas 2), one after the other.

    The gateway stops choosing the replica and waits until nothing is under way there. Then Triton
    is restarted and loads its models. When it gives their golden answers it gets requests again, at
    first a few; then the next one follows. No request fails, over any API. A sequence that is open
    stays with its replica: it counts as under way.

    If this command is killed, the replica gets requests again within a minute.

    --json: a list with replica, drained_s, away_s and proved (the models whose golden answer was
    checked) for each that was restarted.

    \b
    tidegate restart
    tidegate restart --replica 1 --drain-timeout 5m
    """
    from tidegate.app.restart import RestartOptions, restart

    interrupt_on_sigterm()
    options = RestartOptions(replica, drain_timeout.total_seconds(), force)
    with progress(err=as_json) as report:
        restarted = list(restart(options, Paths.current(), report))
    if as_json:
        print_json([replica.as_dict() for replica in restarted])
