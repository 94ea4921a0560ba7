"""``tidegate prune NAME``: delete old versions."""

import click

from tidegate.app.paths import Paths
from tidegate.commands.options import json_option, repository_option, servers_option
from tidegate.commands.output import print_json, progress

MIB = 1024 * 1024


@click.command("prune", short_help="Delete old versions")
@click.argument("name")
@click.option(
    "--keep", type=click.IntRange(1), default=3, show_default=True, help="How many versions."
)
@repository_option
@servers_option
@json_option
def command(
    name: str,
    keep: int,
    addresses: tuple[str, ...],
    as_json: bool,
) -> None:
    """Delete all but the newest versions of the pipeline NAME, and whatever only they needed.

    Never deleted: the active version, one that a running server serves, and a member's version
    that another pipeline pins.

    --json: pipeline, repository, deleted (MODEL/VERSION each), freed_bytes, kept (the older
    versions that stay, each with the reason), no_answer_from.

    \b
    tidegate prune text_embedding --keep 3
    """
    from serving.publish.versions import kept_longer, prune
    from serving.repository.model_repository import ModelRepository
    from tidegate.app.rollout import deployment as deployed

    paths = Paths.current()
    repository = ModelRepository(paths.repository)
    with (
        progress(err=as_json) as report,
        deployed(paths, repository, report, addresses=addresses) as deployment,
    ):
        deleted, freed_bytes = prune(deployment, name, keep)
        kept = kept_longer(deployment, name, keep)
    if as_json:
        print_json(
            {
                "pipeline": name,
                "repository": str(repository),
                "deleted": deleted,
                "freed_bytes": freed_bytes,
                "kept": {f"{name}/{number}": reason for number, reason in kept.items()},
                "no_answer_from": list(deployment.silent),
            }
        )
        return
    click.echo(f"{name}: deleted {', '.join(deleted) or 'nothing'} ({freed_bytes / MIB:,.1f} MiB)")
    for number, reason in kept.items():
        click.echo(f"  version {number} stays: {reason}")
    if deployment.silent and deleted:
        click.echo(
            f"  {', '.join(deployment.silent)} did not answer: if it serves a deleted version, it "
            f"cannot load it again; when it answers, run tidegate publish {name}"
        )
