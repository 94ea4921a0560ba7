"""``tidegate rollback NAME``: serve an earlier version again."""

from pathlib import Path

import click

from tidegate.app import rollout
from tidegate.app.paths import Paths, json_option, print_json
from tidegate.app.signals import interrupt_on_sigterm


@click.command("rollback")
@click.argument("name")
@click.option(
    "--to",
    "version",
    type=click.IntRange(1),
    help="The version. Default: the one before the active one.",
)
@rollout.repositories
@rollout.servers
@rollout.grace
@json_option
def command(
    name: str,
    version: int | None,
    repositories: tuple[Path, ...],
    addresses: tuple[str, ...],
    grace_s: float,
    as_json: bool,
) -> None:
    """Serve an earlier version of the pipeline NAME again (or, with --to, a later one).

    Its files are checked against its manifest, and it must answer its golden sample, before the pin
    moves. No request fails. Works with Triton up or down.

    --json: a list with, for each repository, pipeline, version, repository, served_by and
    no_answer_from.

    \b
    tidegate rollback text_embedding
    tidegate rollback text_embedding --to 3
    """
    from serving.publish.versions import switch_to

    interrupt_on_sigterm()
    paths = Paths.current()
    documents = []
    for deployment in rollout.deployments(paths, repositories, grace_s, addresses, as_json=as_json):
        number = switch_to(deployment, name, version)
        documents.append(rollout.document(deployment, name, number))
        if not as_json:
            click.echo(rollout.outcome(deployment, paths, name, number))
    if as_json:
        print_json(documents)
