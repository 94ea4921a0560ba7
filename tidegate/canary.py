"""``tidegate canary NAME``: a part of the load to another version."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tidegate import rollout
from tidegate.places import Places
from tidegate.signals import interrupt_on_sigterm

if TYPE_CHECKING:
    from serving.target import Target
    from tidegate.canaries import Canaries
    from tidegate.routes_file import Per


@click.command("canary")
@click.argument("name")
@click.option("--version", type=click.IntRange(1), help="Default: the newest that does not serve.")
@click.option(
    "--weight", type=click.IntRange(0, 100), required=True, help="Percent; 0 ends the canary."
)
@click.option(
    "--per",
    type=click.Choice(["caller", "request"]),
    help="Percent of what. caller (the default): whoever calls, by key, token or certificate, "
    "meets the same version every time; an application with one key gets all or nothing. request: "
    "each request is drawn by itself. Without it, a canary that runs keeps what it has.",
)
@rollout.repository
@rollout.servers
@rollout.grace
def command(
    name: str,
    version: int | None,
    weight: int,
    per: "Per | None",
    repository: Path | None,
    addresses: tuple[str, ...],
    grace_s: float,
) -> None:
    """Send a part of the callers of NAME, or of its requests, to another of its versions.

    The version is served beside NAME as NAME.v7 and asked its golden sample; then its weight goes
    into the gateway.toml of each stack that serves the repository. There is one canary at a time.
    `tidegate promote NAME` ends it by moving everybody there.

    \b
    tidegate canary text_embedding --weight 10
    tidegate canary text_embedding --weight 10 --per request
    tidegate canary text_embedding --weight 0
    """
    from serving.canary import canary_name
    from tidegate.canaries import Canaries, policies, share_of

    interrupt_on_sigterm()
    places = Places.current()
    path = rollout.one(places, repository)
    with rollout.target(places, path, grace_s, addresses) as target:
        found = Canaries(path, name, policies(places, rollout.running(places, path)))
        if weight == 0:
            _end(found, target, version)
            return
        number = version or _default(found)
        gone = found.begin(target, number, weight, per)
        for each in gone:
            click.echo(f"{each} was loaded and nobody was sent there: it is gone")
        share = share_of(weight, found.route().per, name)
        click.echo(f"{canary_name(name, number)} gets {share}")


def _end(found: "Canaries", target: "Target", version: int | None) -> None:
    from serving.canary import canary_name
    from serving.errors import PublishFailed

    wanted = None if version is None else {canary_name(found.name, version)}
    if wanted and not wanted & set(found.loaded()):
        raise PublishFailed(f"{found.name} has no canary of version {version}")
    if not (gone := found.end(target, wanted)):
        raise PublishFailed(f"{found.name} has no canary")
    left = found.routed()
    rest = f"{', '.join(left)} stays" if left else f"{found.name} serves everybody"
    click.echo(f"{', '.join(gone)} is gone: {rest}")


def _default(found: "Canaries") -> int:
    """The canary that runs, or the newest version that does not serve."""
    from serving.errors import PublishFailed
    from serving.versions import versions

    there = list(found.routed().values()) or list(found.loaded().values())
    there = there or [v.number for v in versions(found.repository, found.name) if not v.is_active]
    if not there:
        raise PublishFailed(f"{found.name} has no other version")
    return there[-1]
