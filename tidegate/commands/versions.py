"""``tidegate versions NAME``: the published versions, the canary, and who serves which."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tidegate.app import rollout
from tidegate.app.paths import Paths, json_option, print_json

if TYPE_CHECKING:
    from serving.publish.versions import Version
    from serving.triton.servers import Server
    from tidegate.app.canaries import Canaries
    from tidegate.app.routes_file import Route


@click.command("versions")
@click.argument("name")
@json_option
@rollout.repository
@rollout.servers
def command(name: str, as_json: bool, repository: Path | None, addresses: tuple[str, ...]) -> None:
    """List the published versions of the pipeline NAME; * marks the active one on disk.

    Below them: the canary and its share, and the version that each running server serves.

    \b
    tidegate versions text_embedding
    """
    from serving.publish.versions import versions
    from tidegate.app.canaries import Canaries, policies
    from tidegate.app.configs import tuned_line

    paths = Paths.current()
    path = rollout.selected_repository(paths, repository)
    published = versions(path, name)
    servers = rollout.running(paths, path, addresses)
    served = {server.address: _served(server, name) for server in servers}
    canaries = Canaries(path, name, policies(paths, servers))
    route, fault = _route(canaries)
    if as_json:
        loaded = {version: canary for canary, version in canaries.loaded().items()}
        documents = [
            {
                **asdict(version),
                "canary": _share(route, loaded.get(version.number)),
                "served_by": _servers_of(served, version),
            }
            for version in published
        ]
        print_json(documents)
        return
    for version in published:
        click.echo(_line(version))
    if tuned := tuned_line(path, name):
        click.echo(f"  tuned: {tuned}")
    active = next((version.number for version in published if version.is_active), 0)
    for line in (*_canary_lines(canaries, route, fault), *_server_lines(served, name, active)):
        click.echo(line)


def _line(version: "Version") -> str:
    from serving.repository.manifest import summary

    members = " ".join(f"{model}/{number}" for model, number in version.members.items())
    mark = "*" if version.is_active else " "
    if version.manifest is None:
        return f"{mark} {version.number}  added by hand, no manifest  {members}"
    manifest = version.manifest
    return f"{mark} {version.number}  {manifest.made_at}  {members}  {summary(manifest)}"


def _served(server: "Server", name: str) -> list[int] | str:
    """The versions of the pipeline that the server has loaded, or why they are unknown."""
    from serving.errors import ServingError
    from serving.publish.replica import connected

    try:
        with connected([server]) as replicas:
            return replicas[0].served(name) if replicas else "does not answer"
    except ServingError as error:
        return f"cannot be queried: {error}"


def _servers_of(served: dict[str, list[int] | str], version: "Version") -> list[str]:
    return [
        address
        for address, numbers in served.items()
        if isinstance(numbers, list) and version.number in numbers
    ]


def _route(canaries: "Canaries") -> tuple["Route | None", str]:
    """The route in gateway.toml, or None and why it is unknown."""
    from serving.errors import ServingError

    try:
        return canaries.route(), ""
    except (ServingError, OSError) as error:
        return None, str(error)


def _share(route: "Route | None", canary: str | None) -> dict[str, object] | None:
    """A canary's share; its percent is None if unknown."""
    if canary is None:
        return None
    percent = route.routed.get(canary, 0) if route else None
    return {"name": canary, "percent": percent, "per": route.per if route else None}


def _canary_lines(canaries: "Canaries", route: "Route | None", fault: str) -> Iterator[str]:
    from tidegate.app.canaries import share_of

    loaded = canaries.loaded()
    if route is None:
        yield f"  the share of {', '.join(loaded) or 'a canary'} is unknown: {fault}"
        return
    for canary in loaded:
        share = share_of(route.routed.get(canary, 0), route.per, canaries.name)
        yield f"  canary {canary}: {share}"
    for model, percent in route.routed.items():
        if model not in loaded:
            share = share_of(percent, route.per, canaries.name)
            yield (
                f"  gateway.toml sends {share} to {model}, which is not a canary in this repository"
            )


def _server_lines(served: dict[str, list[int] | str], name: str, active: int) -> Sequence[str]:
    if not served:
        return ["  no running server was found for this repository (elsewhere: --server HOST:PORT)"]
    lines = []
    for address, versions in served.items():
        if isinstance(versions, str):
            lines.append(f"  server {address} {versions}")
        elif versions == [active]:
            lines.append(f"  server {address} serves {active}")
        else:
            summary = ", ".join(map(str, versions)) or f"no version of {name}"
            lines.append(
                f"  server {address} serves {summary}, but {active} is active on disk: tidegate "
                f"publish {name} brings it up to date"
            )
    return lines
