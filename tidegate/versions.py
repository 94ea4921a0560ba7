"""``tidegate versions NAME``: what can be rolled back to, what is tried, and who serves what."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tidegate import rollout
from tidegate.paths import Paths, json_option, print_json

if TYPE_CHECKING:
    from serving.servers import Server
    from serving.versions import Version
    from tidegate.canaries import Canaries
    from tidegate.routes_file import Route


@click.command("versions")
@click.argument("name")
@json_option
@rollout.repository
@rollout.servers
def command(name: str, as_json: bool, repository: Path | None, addresses: tuple[str, ...]) -> None:
    """List the published versions of the pipeline NAME; * marks the one that is active on the disk.

    Below: the canary and its share, and the version that each running server serves.

    \b
    tidegate versions text_embedding
    """
    from serving.versions import versions
    from tidegate.canaries import Canaries, policies
    from tidegate.configs import tuned_line

    paths = Paths.current()
    path = rollout.one(paths, repository)
    found = versions(path, name)
    servers = rollout.running(paths, path, addresses)
    served = {each.address: _served(each, name) for each in servers}
    tried = Canaries(path, name, policies(paths, servers))
    route, fault = _route(tried)
    if as_json:
        loaded = {version: canary for canary, version in tried.loaded().items()}
        shown = [
            {
                **asdict(each),
                "canary": _share(route, loaded.get(each.number)),
                "served_by": _by(served, each),
            }
            for each in found
        ]
        print_json(shown)
        return
    for each in found:
        click.echo(_line(each))
    if tuned := tuned_line(path, name):
        click.echo(f"  tuned: {tuned}")
    active = next((each.number for each in found if each.is_active), 0)
    for line in (*_canary_lines(tried, route, fault), *_server_lines(served, name, active)):
        click.echo(line)


def _line(each: "Version") -> str:
    from serving.manifest import summary

    members = " ".join(f"{model}/{version}" for model, version in each.members.items())
    mark = "*" if each.is_active else " "
    if each.manifest is None:
        return f"{mark} {each.number}  put there by hand, no manifest  {members}"
    return f"{mark} {each.number}  {each.manifest.made_at}  {members}  {summary(each.manifest)}"


def _served(server: "Server", name: str) -> list[int] | str:
    """The versions of the pipeline that the server has loaded, or why that is not known."""
    from serving.errors import ServingError
    from serving.replica import connected

    try:
        with connected([server]) as replicas:
            return replicas[0].served(name) if replicas else "does not answer"
    except ServingError as error:
        return f"cannot be asked: {error}"


def _by(served: dict[str, list[int] | str], version: "Version") -> list[str]:
    return [
        address
        for address, found in served.items()
        if isinstance(found, list) and version.number in found
    ]


def _route(tried: "Canaries") -> tuple["Route | None", str]:
    """What gateway.toml says, or None and why that is not known."""
    from serving.errors import ServingError

    try:
        return tried.route(), ""
    except (ServingError, OSError) as error:
        return None, str(error)


def _share(route: "Route | None", canary: str | None) -> dict[str, object] | None:
    """A canary's share; its percent is None where that is not known."""
    if canary is None:
        return None
    percent = route.routed.get(canary, 0) if route else None
    return {"name": canary, "percent": percent, "per": route.per if route else None}


def _canary_lines(tried: "Canaries", route: "Route | None", fault: str) -> Iterator[str]:
    from tidegate.canaries import share_of

    loaded = tried.loaded()
    if route is None:
        yield f"  who is sent to {', '.join(loaded) or 'a canary'} is not known: {fault}"
        return
    for canary in loaded:
        share = share_of(route.routed.get(canary, 0), route.per, tried.name)
        yield f"  canary {canary}: {share}"
    for other, percent in route.routed.items():
        if other not in loaded:
            share = share_of(percent, route.per, tried.name)
            yield f"  gateway.toml sends {share} to {other}, which is no canary in this repository"


def _server_lines(served: dict[str, list[int] | str], name: str, active: int) -> Sequence[str]:
    if not served:
        return [
            "  no server was found that runs on this repository (elsewhere: --server HOST:PORT)"
        ]
    lines = []
    for address, found in served.items():
        if isinstance(found, str):
            lines.append(f"  server {address} {found}")
        elif found == [active]:
            lines.append(f"  server {address} serves {active}")
        else:
            what = ", ".join(map(str, found)) or f"no version of {name}"
            lines.append(
                f"  server {address} serves {what}, and {active} is active on the disk: tidegate "
                f"publish {name} brings it there"
            )
    return lines
