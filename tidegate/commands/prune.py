"""``tidegate prune NAME``: delete old versions."""

from pathlib import Path

import click

from tidegate.app import rollout
from tidegate.app.paths import Paths, json_option, print_json

MIB = 1024 * 1024


@click.command("prune")
@click.argument("name")
@click.option(
    "--keep", type=click.IntRange(1), default=3, show_default=True, help="How many versions."
)
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
    """Delete all but the newest versions of the pipeline NAME, and whatever only they needed.

    Never deleted: the active version, one that a running server serves, and a member's version
    that another pipeline pins.

    --json: pipeline, repository, deleted (MODEL/VERSION each), freed_bytes,
    no_answer_from.

    \b
    tidegate prune text_embedding --keep 3
    """
    from serving.publish.versions import prune

    paths = Paths.current()
    path = rollout.selected_repository(paths, repository)
    with rollout.deployment(paths, path, addresses=addresses, as_json=as_json) as deployment:
        deleted, freed_bytes = prune(deployment, name, keep)
    if as_json:
        print_json(
            {
                "pipeline": name,
                "repository": str(path),
                "deleted": deleted,
                "freed_bytes": freed_bytes,
                "no_answer_from": list(deployment.silent),
            }
        )
        return
    click.echo(f"{name}: deleted {', '.join(deleted) or 'nothing'} ({freed_bytes / MIB:,.1f} MiB)")
    if deployment.silent and deleted:
        click.echo(
            f"  {', '.join(deployment.silent)} did not answer: if it serves a deleted version, it "
            f"cannot load it again; when it answers, run tidegate publish {name}"
        )
