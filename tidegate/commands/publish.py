"""``tidegate publish``: publish a pipeline built elsewhere, or load the active version on
every server."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tidegate.app.paths import Paths
from tidegate.app.signals import interrupt_on_sigterm
from tidegate.commands.options import (
    grace_option,
    json_option,
    repositories_option,
    servers_option,
)
from tidegate.commands.output import print_outcomes, progress

if TYPE_CHECKING:
    from serving.publish.deployment import Deployment


@click.command("publish", short_help="Check and serve a pipeline that was built elsewhere")
@click.argument("what")
@click.option("--name", default="", help="The pipeline to publish, if the folder holds several.")
@click.option(
    "--accept-no-manifest",
    "accepted",
    metavar="REASON",
    default="",
    help="Accept a folder without a manifest; the reason is recorded.",
)
@repositories_option
@servers_option
@grace_option
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

    With the NAME of a published pipeline, its active version is loaded on every server: this
    completes a publication that was interrupted.

    --json: a list with, for each repository, pipeline, version, repository, served_by and
    no_answer_from.

    \b
    tidegate publish ./from-the-training-machine
    tidegate publish text_embedding
    """
    from serving.publish.import_pipeline import import_pipeline
    from serving.publish.versions import switch_to
    from tidegate.app.rollout import RolloutOptions, roll_out

    interrupt_on_sigterm()
    options = RolloutOptions(repositories, addresses, grace_s)

    def change(deployment: "Deployment") -> tuple[str, int]:
        if Path(what).is_dir():
            return import_pipeline(Path(what).resolve(), deployment, name, accepted)
        deployment.repository.require_published(what)
        return what, switch_to(deployment, what, deployment.repository.active_version(what))

    with progress(err=as_json) as report:
        print_outcomes(roll_out(change, options, Paths.current(), report), as_json=as_json)
