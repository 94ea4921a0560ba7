"""``tidegate prune NAME``: old versions off the disk."""

from pathlib import Path

import click

from tidegate import rollout
from tidegate.places import Places, json_option, print_json

MIB = 1024 * 1024


@click.command("prune")
@click.argument("name")
@click.option("--keep", type=click.IntRange(1), default=3, show_default=True, help="How many.")
@rollout.repository
@rollout.servers
@json_option
def command(
    name: str,
    keep: int,
    repository: Path | None,
    addresses: tuple[str, ...],
    as_json: bool,
) -> None:
    """Delete all but the newest versions of the pipeline NAME, and what only they needed.

    The version that serves is never deleted, nor a member's version that another pipeline pins.

    --json: pipeline, repository, deleted (MODEL/VERSION each), freed_bytes.

    \b
    tidegate prune text_embedding --keep 3
    """
    from serving.versions import prune

    places = Places.current()
    path = rollout.one(places, repository)
    with rollout.target(places, path, addresses=addresses, as_json=as_json) as target:
        gone, freed = prune(target, name, keep)
    if as_json:
        print_json(
            {"pipeline": name, "repository": str(path), "deleted": gone, "freed_bytes": freed}
        )
        return
    click.echo(f"{name}: deleted {', '.join(gone) or 'nothing'} ({freed / MIB:,.1f} MiB)")
