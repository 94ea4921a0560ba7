"""``tidegate publish``: a pipeline made elsewhere, or the active version on every server."""

from pathlib import Path

import click

from tidegate import rollout
from tidegate.places import Places
from tidegate.signals import interrupt_on_sigterm


@click.command("publish")
@click.argument("what")
@click.option("--name", default="", help="The pipeline in the folder, if it holds several.")
@click.option(
    "--accept-no-manifest",
    "accepted",
    metavar="REASON",
    default="",
    help="Take a folder that no manifest vouches for; the reason is kept.",
)
@rollout.repositories
@rollout.servers
@rollout.grace
def command(
    what: str,
    name: str,
    accepted: str,
    repositories: tuple[Path, ...],
    addresses: tuple[str, ...],
    grace_s: float,
) -> None:
    """Publish a pipeline that was made elsewhere, beside the version that serves.

    WHAT is a folder with the pipeline and its members, such as a copy of model_repository/NAME*.
    Its manifest is checked; new versions are loaded beside the old ones and asked the golden
    sample; then the pin moves. No request fails. Needs no running Triton: those that run on the
    repository are found, whichever home they run from, and the last line says who serves it.

    With the NAME of a published pipeline, every server is brought to its active version: this
    finishes a publication that stopped half-way.

    \b
    tidegate publish ./from-the-training-machine
    tidegate publish text_embedding
    """
    interrupt_on_sigterm()
    places = Places.current()
    for target in rollout.each(places, repositories, grace_s, addresses):
        if Path(what).is_dir():
            from serving.bring import bring

            found, version = bring(Path(what).resolve(), target, name, accepted)
        else:
            from serving.repository import active_version
            from serving.versions import require_published, switch_to

            require_published(target.repository, what)
            now = active_version(target.repository, what)
            found, version = what, switch_to(target, what, now)
        click.echo(rollout.outcome(target, places, found, version))
