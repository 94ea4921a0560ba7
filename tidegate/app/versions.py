"""The published versions of a pipeline, its canary, and who serves which."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tidegate.app import rollout
from tidegate.app.paths import Paths

if TYPE_CHECKING:
    from serving.repository.model_repository import Version
    from serving.triton.servers import Server
    from tidegate.app.canaries import Canaries
    from tidegate.app.routes_file import Route


@dataclass(frozen=True)
class VersionsReport:
    """``served`` has, by the address of each running server, the versions it has loaded, or why
    they are unknown. ``route`` is None, and ``fault`` the reason, if gateway.toml has no valid
    route; ``tuned`` is '' if the pipeline was not tuned."""

    name: str
    published: Sequence["Version"]
    served: Mapping[str, list[int] | str]
    canaries: Mapping[str, int]
    route: "Route | None"
    fault: str
    tuned: str

    def as_list(self) -> list[dict[str, object]]:
        """The versions in plain JSON types."""
        names = {version: canary for canary, version in self.canaries.items()}
        return [
            {
                **asdict(version),
                "canary": _share(self.route, names.get(version.number)),
                "served_by": [
                    address
                    for address, numbers in self.served.items()
                    if isinstance(numbers, list) and version.number in numbers
                ],
            }
            for version in self.published
        ]

    def lines(self) -> Iterator[str]:
        for version in self.published:
            yield _line(version)
        if self.tuned:
            yield f"  tuned: {self.tuned}"
        yield from self._canary_lines()
        yield from self._server_lines()

    def _canary_lines(self) -> Iterator[str]:
        from tidegate.app.canaries import share_of

        if self.route is None:
            canaries = ", ".join(self.canaries) or "a canary"
            yield f"  the share of {canaries} is unknown: {self.fault}"
            return
        for canary in self.canaries:
            share = share_of(self.route.routed.get(canary, 0), self.route.per, self.name)
            yield f"  canary {canary}: {share}"
        for model, percent in self.route.routed.items():
            if model not in self.canaries:
                share = share_of(percent, self.route.per, self.name)
                yield (
                    f"  gateway.toml sends {share} to {model}, which is not a canary in this "
                    "repository"
                )

    def _server_lines(self) -> Iterator[str]:
        if not self.served:
            yield (
                "  no running server was found for this repository (elsewhere: --server HOST:PORT)"
            )
        active = next((version.number for version in self.published if version.is_active), 0)
        for address, versions in self.served.items():
            if isinstance(versions, str):
                yield f"  server {address} {versions}"
            elif versions == [active]:
                yield f"  server {address} serves {active}"
            else:
                summary = ", ".join(map(str, versions)) or f"no version of {self.name}"
                yield (
                    f"  server {address} serves {summary}, but {active} is active on disk: "
                    f"tidegate publish {self.name} brings it up to date"
                )


def versions_report(paths: Paths, name: str, addresses: Sequence[str]) -> VersionsReport:
    """The versions of the pipeline ``name``, as the repository, its servers (those found, and those
    at ``addresses``) and gateway.toml have them. ServingError if there is no such pipeline,
    StillStarting if ``tidegate up`` is about to make it."""
    from serving.errors import ServingError
    from serving.repository.model_repository import ModelRepository
    from tidegate.app.canaries import Canaries, policies
    from tidegate.app.claim import StillStarting, running_in
    from tidegate.app.configs import tuned_line
    from tidegate.app.task_registry import KNOWN

    repository = ModelRepository(paths.repository)
    if not repository.is_published(name):
        running = running_in(paths.state)
        if running and not running.is_ready and name in running.models:
            raise StillStarting(running)
        if name in KNOWN:
            raise ServingError(
                f"{name} was never converted into {repository.path}: tidegate convert {name}"
            )
    published = repository.published_versions(name)
    servers = rollout.running(paths, repository, addresses)
    canaries = Canaries(repository, name, policies(paths, servers))
    route, fault = _route(canaries)
    return VersionsReport(
        name,
        published,
        {server.address: _served(server, name) for server in servers},
        canaries.loaded(),
        route,
        fault,
        tuned_line(repository, name),
    )


def _line(version: "Version") -> str:
    members = " ".join(f"{model}/{number}" for model, number in version.members.items())
    mark = "*" if version.is_active else " "
    if version.manifest is None:
        return f"{mark} {version.number}  added by hand, no manifest  {members}"
    manifest = version.manifest
    return f"{mark} {version.number}  {manifest.made_at}  {members}  {manifest.summary()}"


def _served(server: "Server", name: str) -> list[int] | str:
    """The versions of the pipeline that the server has loaded, or why they are unknown."""
    from serving.errors import ServingError
    from serving.publish.replica import connected

    try:
        with connected([server]) as replicas:
            return replicas[0].served(name) if replicas else "does not answer"
    except ServingError as error:
        return f"cannot be queried: {error}"


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
