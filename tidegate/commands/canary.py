"""``tidegate canary NAME``: send part of the traffic to another version."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tidegate.app import rollout
from tidegate.app.paths import Paths, json_option, print_json
from tidegate.app.signals import interrupt_on_sigterm

if TYPE_CHECKING:
    from serving.publish.deployment import Deployment
    from tidegate.app.canaries import Canaries
    from tidegate.app.routes_file import Per


@click.command("canary")
@click.argument("name")
@click.option("--version", type=click.IntRange(1), help="Default: the newest that is not active.")
@click.option(
    "--weight", type=click.IntRange(0, 100), required=True, help="Percent; 0 ends the canary."
)
@click.option(
    "--per",
    type=click.Choice(["caller", "request"]),
    help="What --weight is a percentage of. caller (the default): a caller, by key, token or "
    "certificate, always gets the same version, so an application with one key gets all or "
    "nothing. request: each request is assigned on its own. If omitted, a running canary keeps its "
    "setting.",
)
@rollout.repository
@rollout.servers
@rollout.grace
@json_option
def command(
    name: str,
    version: int | None,
    weight: int,
    per: "Per | None",
    repository: Path | None,
    addresses: tuple[str, ...],
    grace_s: float,
    as_json: bool,
) -> None:
    """Send part of the callers of NAME, or of its requests, to another of its versions.

    The version is served beside NAME as NAME.v7 and its golden sample is checked; then its weight
    is written to the gateway.toml of each stack that serves the repository. One canary runs at a
    time. `tidegate promote NAME` ends it by moving everyone to it.

    --json: pipeline, repository, canaries (name, version, percent, per), gone, served_by and
    no_answer_from.

    \b
    tidegate canary text_embedding --weight 10
    tidegate canary text_embedding --weight 10 --per request
    tidegate canary text_embedding --weight 0
    """
    from serving.publish.canary import canary_name
    from tidegate.app.canaries import Canaries, policies, share_of

    interrupt_on_sigterm()
    paths = Paths.current()
    path = rollout.selected_repository(paths, repository)
    with rollout.deployment(paths, path, grace_s, addresses, as_json=as_json) as deployment:
        canaries = Canaries(path, name, policies(paths, rollout.running(paths, path)))
        if weight == 0:
            removed = _end(canaries, deployment, version)
        else:
            number = version or _default(canaries)
            removed = canaries.begin(deployment, number, weight, per)
        if as_json:
            print_json(_document(canaries, deployment, removed))
            return
        if weight == 0:
            routed = canaries.routed()
            remainder = f"{', '.join(routed)} stays" if routed else f"{name} serves everyone"
            click.echo(f"{', '.join(removed)} was removed: {remainder}{_pending(deployment)}")
            return
        for canary in removed:
            click.echo(f"{canary} was loaded but got no traffic: it was removed")
        share = share_of(weight, canaries.route().per, name)
        click.echo(f"{canary_name(name, number)} gets {share}{_pending(deployment)}")


def _pending(deployment: "Deployment") -> str:
    """Which servers the change has not reached yet, as the end of a message; '' if it has all."""
    if deployment.silent:
        return (
            f". {', '.join(deployment.silent)} did not answer and was not changed: run the same "
            "command again when it does"
        )
    if not deployment.replicas:
        return (
            " from the next start on: no running server was found for this repository (name one "
            "elsewhere with --server HOST:PORT)"
        )
    return ""


def _document(canaries: "Canaries", deployment: "Deployment", removed: list[str]) -> dict[str, Any]:
    route = canaries.route()
    return {
        "pipeline": canaries.name,
        "repository": str(canaries.repository),
        "canaries": [
            {
                "name": name,
                "version": version,
                "percent": route.routed.get(name, 0),
                "per": route.per,
            }
            for name, version in canaries.loaded().items()
        ],
        "gone": removed,
        "served_by": [replica.address for replica in deployment.replicas],
        "no_answer_from": list(deployment.silent),
    }


def _end(canaries: "Canaries", deployment: "Deployment", version: int | None) -> list[str]:
    from serving.errors import PublishFailed
    from serving.publish.canary import canary_name

    names = None if version is None else {canary_name(canaries.name, version)}
    if names and not names & set(canaries.loaded()):
        raise PublishFailed(f"{canaries.name} has no canary of version {version}")
    if not (removed := canaries.end(deployment, names)):
        raise PublishFailed(f"{canaries.name} has no canary")
    return removed


def _default(canaries: "Canaries") -> int:
    """The running canary's version, or the newest version that is not active."""
    from serving.errors import PublishFailed
    from serving.publish.versions import versions

    candidates = list(canaries.routed().values()) or list(canaries.loaded().values())
    candidates = candidates or [
        v.number for v in versions(canaries.repository, canaries.name) if not v.is_active
    ]
    if not candidates:
        raise PublishFailed(f"{canaries.name} has no other version")
    return candidates[-1]
