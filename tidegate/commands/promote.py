"""``tidegate promote NAME``: make the canary's version the active one."""

from pathlib import Path

import click

from tidegate.app import rollout
from tidegate.app.paths import Paths, json_option, print_json
from tidegate.app.signals import interrupt_on_sigterm


@click.command("promote")
@click.argument("name")
@click.option(
    "--version", type=click.IntRange(1), help="The version, if gateway.toml routes to several."
)
@rollout.repository
@rollout.servers
@rollout.grace
@json_option
def command(
    name: str,
    version: int | None,
    repository: Path | None,
    addresses: tuple[str, ...],
    grace_s: float,
    as_json: bool,
) -> None:
    """Serve the canary's version of the pipeline NAME to everyone, and end the canary.

    The canary is the version that callers are routed to now ([routes] in gateway.toml).

    --json: its pipeline, version, repository, served_by, no_answer_from.

    \b
    tidegate promote text_embedding
    """
    from serving.publish.canary import promote
    from serving.publish.versions import require_published
    from tidegate.app.canaries import Canaries, policies

    interrupt_on_sigterm()
    paths = Paths.current()
    path = rollout.selected_repository(paths, repository)
    require_published(path, name)
    with rollout.deployment(paths, path, grace_s, addresses, as_json=as_json) as deployment:
        canaries = Canaries(path, name, policies(paths, rollout.running(paths, path)))
        number = canaries.routed_version(version)
        promote(deployment, name, number)
        canaries.end(deployment)
        if as_json:
            print_json(rollout.document(deployment, name, number))
        elif deployment.replicas and not deployment.silent:
            click.echo(f"{name}: version {number} serves everyone")
        else:
            click.echo(rollout.outcome(deployment, paths, name, number))
