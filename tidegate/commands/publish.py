"""``tidegate publish``: publish a pipeline built elsewhere, or bring servers to the active
version."""

from pathlib import Path

import click

from tidegate.app import rollout
from tidegate.app.paths import Paths, json_option, print_json
from tidegate.app.signals import interrupt_on_sigterm


@click.command("publish")
@click.argument("what")
@click.option("--name", default="", help="The pipeline to publish, if the folder holds several.")
@click.option(
    "--accept-no-manifest",
    "accepted",
    metavar="REASON",
    default="",
    help="Accept a folder without a manifest; the reason is recorded.",
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
    """Publish a pipeline that was built elsewhere, beside the active version.

    WHAT is a folder with the pipeline and its members, such as a copy of model_repository/NAME*.
    Its manifest is checked; the new versions are loaded beside the old ones and must answer the
    golden sample; then the pin moves. No request fails. Needs no running Triton: servers running
    on the repository are found, whichever home they run from, and the last line names them.

    With the NAME of a published pipeline, every server is brought to its active version: this
    completes a publication that was interrupted.

    --json: a list with, for each repository, pipeline, version, repository, served_by and
    no_answer_from.

    \b
    tidegate publish ./from-the-training-machine
    tidegate publish text_embedding
    """
    interrupt_on_sigterm()
    paths = Paths.current()
    documents = []
    for deployment in rollout.deployments(paths, repositories, grace_s, addresses, as_json=as_json):
        if Path(what).is_dir():
            from serving.publish.import_pipeline import import_pipeline

            pipeline, version = import_pipeline(Path(what).resolve(), deployment, name, accepted)
        else:
            from serving.publish.versions import require_published, switch_to
            from serving.repository.model_repository import active_version

            require_published(deployment.repository, what)
            active = active_version(deployment.repository, what)
            pipeline, version = what, switch_to(deployment, what, active)
        documents.append(rollout.document(deployment, pipeline, version))
        if not as_json:
            click.echo(rollout.outcome(deployment, paths, pipeline, version))
    if as_json:
        print_json(documents)
