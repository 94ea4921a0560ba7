"""``tidegate publish``: a pipeline made elsewhere, or the active version on every server."""

from pathlib import Path

import click

from tidegate import rollout
from tidegate.paths import Paths, json_option, print_json
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
@json_option
def command(
    what: str,
    name: str,
    accepted: str,
    repositories: tuple[Path, ...],
    addresses: tuple[str, ...],
    grace_s: float,
    as_json: bool,
) -> None:
    """Publish a pipeline that was made elsewhere, beside the version that serves.

    WHAT is a folder with the pipeline and its members, such as a copy of model_repository/NAME*.
    Its manifest is checked; new versions are loaded beside the old ones and asked the golden
    sample; then the pin moves. No request fails. Needs no running Triton: those that run on the
    repository are found, whichever home they run from, and the last line says who serves it.

    With the NAME of a published pipeline, every server is brought to its active version: this
    finishes a publication that stopped half-way.

    --json: a list with, for each repository, pipeline, version, repository, served_by and
    no_answer_from.

    \b
    tidegate publish ./from-the-training-machine
    tidegate publish text_embedding
    """
    interrupt_on_sigterm()
    paths = Paths.current()
    done = []
    for target in rollout.each(paths, repositories, grace_s, addresses, as_json=as_json):
        if Path(what).is_dir():
            from serving.import_pipeline import import_pipeline

            found, version = import_pipeline(Path(what).resolve(), target, name, accepted)
        else:
            from serving.repository import active_version
            from serving.versions import require_published, switch_to

            require_published(target.repository, what)
            now = active_version(target.repository, what)
            found, version = what, switch_to(target, what, now)
        done.append(rollout.document(target, found, version))
        if not as_json:
            click.echo(rollout.outcome(target, paths, found, version))
    if as_json:
        print_json(done)
