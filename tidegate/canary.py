"""``tidegate canary NAME``: a part of the load to another version."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tidegate import rollout
from tidegate.paths import Paths, json_option, print_json
from tidegate.signals import interrupt_on_sigterm

if TYPE_CHECKING:
    from serving.deployment import Deployment
    from tidegate.canaries import Canaries
    from tidegate.routes_file import Per


@click.command("canary")
@click.argument("name")
@click.option("--version", type=click.IntRange(1), help="Default: the newest that does not serve.")
@click.option(
    "--weight", type=click.IntRange(0, 100), required=True, help="Percent; 0 ends the canary."
)
@click.option(
    "--per",
    type=click.Choice(["caller", "request"]),
    help="Percent of what. caller (the default): whoever calls, by key, token or certificate, "
    "meets the same version every time; an application with one key gets all or nothing. request: "
    "each request is drawn by itself. Without it, a canary that runs keeps what it has.",
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
    """Send a part of the callers of NAME, or of its requests, to another of its versions.

    The version is served beside NAME as NAME.v7 and asked its golden sample; then its weight goes
    into the gateway.toml of each stack that serves the repository. There is one canary at a time.
    `tidegate promote NAME` ends it by moving everybody there.

    --json: pipeline, repository, canaries (name, version, percent, per), gone, served_by and
    no_answer_from.

    \b
    tidegate canary text_embedding --weight 10
    tidegate canary text_embedding --weight 10 --per request
    tidegate canary text_embedding --weight 0
    """
    from serving.canary import canary_name
    from tidegate.canaries import Canaries, policies, share_of

    interrupt_on_sigterm()
    paths = Paths.current()
    path = rollout.one(paths, repository)
    with rollout.deployment(paths, path, grace_s, addresses, as_json=as_json) as deployment:
        found = Canaries(path, name, policies(paths, rollout.running(paths, path)))
        if weight == 0:
            gone = _ended(found, deployment, version)
        else:
            number = version or _default(found)
            gone = found.begin(deployment, number, weight, per)
        if as_json:
            print_json(_document(found, deployment, gone))
            return
        if weight == 0:
            left = found.routed()
            rest = f"{', '.join(left)} stays" if left else f"{name} serves everybody"
            click.echo(f"{', '.join(gone)} is gone: {rest}{_not_told(deployment)}")
            return
        for each in gone:
            click.echo(f"{each} was loaded and nobody was sent there: it is gone")
        share = share_of(weight, found.route().per, name)
        click.echo(f"{canary_name(name, number)} gets {share}{_not_told(deployment)}")


def _not_told(deployment: "Deployment") -> str:
    """Of which servers what was said does not hold yet."""
    if deployment.silent:
        return (
            f". {', '.join(deployment.silent)} did not answer and was not told: "
            "run the same command "
            "again when it does"
        )
    if not deployment.replicas:
        return (
            " from the next start on: no server was found that runs on the repository (for one "
            "that runs elsewhere give --server HOST:PORT)"
        )
    return ""


def _document(found: "Canaries", deployment: "Deployment", gone: list[str]) -> dict[str, Any]:
    route = found.route()
    return {
        "pipeline": found.name,
        "repository": str(found.repository),
        "canaries": [
            {
                "name": name,
                "version": version,
                "percent": route.routed.get(name, 0),
                "per": route.per,
            }
            for name, version in found.loaded().items()
        ],
        "gone": gone,
        "served_by": [replica.address for replica in deployment.replicas],
        "no_answer_from": list(deployment.silent),
    }


def _ended(found: "Canaries", deployment: "Deployment", version: int | None) -> list[str]:
    from serving.canary import canary_name
    from serving.errors import PublishFailed

    wanted = None if version is None else {canary_name(found.name, version)}
    if wanted and not wanted & set(found.loaded()):
        raise PublishFailed(f"{found.name} has no canary of version {version}")
    if not (gone := found.end(deployment, wanted)):
        raise PublishFailed(f"{found.name} has no canary")
    return gone


def _default(found: "Canaries") -> int:
    """The canary that runs, or the newest version that does not serve."""
    from serving.errors import PublishFailed
    from serving.versions import versions

    there = list(found.routed().values()) or list(found.loaded().values())
    there = there or [v.number for v in versions(found.repository, found.name) if not v.is_active]
    if not there:
        raise PublishFailed(f"{found.name} has no other version")
    return there[-1]
