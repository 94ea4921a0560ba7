"""``tidegate prune NAME``: old versions off the disk."""

from pathlib import Path

import click

from tidegate import rollout
from tidegate.places import Places

MIB = 1024 * 1024


@click.command("prune")
@click.argument("name")
@click.option("--keep", type=click.IntRange(1), default=3, show_default=True, help="How many.")
@rollout.repository
@rollout.servers
def command(name: str, keep: int, repository: Path | None, addresses: tuple[str, ...]) -> None:
    """Delete all but the newest versions of the pipeline NAME, and what only they needed.

    The version that serves is never deleted, nor a member's version that another pipeline pins.

    \b
    tidegate prune text_embedding --keep 3
    """
    from serving.versions import prune

    places = Places.current()
    with rollout.target(places, rollout.one(places, repository), addresses=addresses) as target:
        gone, freed = prune(target, name, keep)
    click.echo(f"{name}: deleted {', '.join(gone) or 'nothing'} ({freed / MIB:,.1f} MiB)")
