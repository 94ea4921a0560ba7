"""The canary of a pipeline, in the two places that define it: the repository, where it is a
pipeline of its own, and ``[routes]`` in the ``gateway.toml`` of each stack that serves the
repository, which decides who is sent to it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.errors import PublishFailed, ServingError
from serving.publish.canary import canaries, canary_name, promote, start, stop, unload_left
from serving.repository.model_repository import ModelRepository
from tidegate.app import rollout
from tidegate.app.progress import Progress
from tidegate.app.routes_file import (
    PER,
    Per,
    Route,
    read_route,
    read_shadow,
    set_weights,
    wait_until_taken,
)

if TYPE_CHECKING:
    from serving.publish.deployment import Deployment
    from serving.triton.servers import Server
    from tidegate.app.paths import Paths


def policies(paths: "Paths", servers: Sequence["Server"]) -> list[Path]:
    """The ``gateway.toml`` of each home that serves the repository now; if none does, our own."""
    folders = [Path(server.work_dir).resolve() for server in servers if server.work_dir]
    # Not the files that links point to: beside each link is what the gateway says of it.
    return [folder / paths.policy.name for folder in dict.fromkeys(folders)] or [paths.policy]


def companion_models(repository: ModelRepository, policy: Path, names: Sequence[str]) -> list[str]:
    """The models to serve along with these pipelines: their canaries, and every other model that
    their callers are routed to, or their requests are shadowed by."""
    models: list[str] = []
    for name in names:
        try:
            routed = [*read_route(policy, name).routed]
            routed += filter(None, [read_shadow(policy, name)])
        except (OSError, ServingError):  # the gateway reports what is wrong with the file
            routed = []
        loaded = [canary_name(name, version) for version in canaries(repository, name)]
        models += [
            *loaded,
            *(model for model in routed if repository.is_published(model)),
        ]
    return models


def _silent(line: str) -> None:
    """A ``Progress`` for whoever only reads."""


@dataclass(frozen=True)
class Canaries:
    """The canaries of the pipeline ``name``; ``policies`` are the files that route to them."""

    repository: ModelRepository
    name: str
    policies: Sequence[Path]
    report: Progress = _silent

    def route(self) -> Route:
        """The route that all the files agree on; ServingError if they differ."""
        routes = [read_route(path, self.name) for path in self.policies]
        if any(route != routes[0] for route in routes):
            files = ", ".join(map(str, self.policies))
            raise ServingError(
                f"these files differ in [routes.{self.name}]; make them agree first: {files}"
            )
        return routes[0]

    def loaded(self) -> dict[str, int]:
        """The canaries in the repository: name -> version."""
        return {
            canary_name(self.name, version): version
            for version in canaries(self.repository, self.name)
        }

    def shadows(self) -> set[str]:
        """What the files name as shadows of the pipeline."""
        return {read_shadow(path, self.name) for path in self.policies} - {""}

    def routed(self) -> dict[str, int]:
        """The loaded canaries that get traffic: name -> version."""
        loaded = self.loaded()
        return {name: loaded[name] for name in self.route().routed if name in loaded}

    def begin(
        self, deployment: "Deployment", version: int, percent: int, per: Per | None
    ) -> list[str]:
        """Serve the version as the canary and route ``percent`` to it.

        Returns the names of the canaries that had no traffic and were removed. Raises
        PublishFailed while another canary is running.
        """
        route, canary = self.route(), canary_name(self.name, version)
        for other, share in route.routed.items():
            if other != canary and not self._is_stale(other):
                raise PublishFailed(self._refusal(other, share, route.per))
        for shadow in sorted(self.shadows() & set(self.loaded()) - {canary}):
            raise PublishFailed(
                f"{shadow} is the shadow of {self.name}, and only one other version is served at a "
                f"time: tidegate shadow {self.name} --percent 0 ends it"
            )
        removed = self._clear(deployment, set(self.loaded()) - {canary})
        was_loaded = canary in self.loaded()
        self.report(f"{canary}: loading it beside {self.name}, and asking its golden sample")
        start(deployment, self.name, version)
        try:
            self._put({canary: percent}, per or route.per)
        except (OSError, ServingError):
            if not was_loaded:
                stop(deployment, self.name, version)
            raise
        self._wait()
        return removed

    def end(self, deployment: "Deployment", names: set[str] | None = None) -> list[str]:
        """Stop routing to these canaries (default: all) and unload them.

        Returns their names. Other routes stay as they are.
        """
        route = self.route()
        ending = set(self.loaded()) if names is None else names
        shadows = self.shadows()  # they lose their share of the callers, and stay loaded
        remaining = {
            name: percent
            for name, percent in route.weights.items()
            if name not in ending and not self._is_stale(name)
        }
        if remaining != route.weights:
            self._put(remaining, route.per)
            self._wait()
        return sorted(
            {*self._clear(deployment, ending - shadows), *set(route.weights) - set(remaining)}
        )

    def shares(self) -> list[dict[str, Any]]:
        """The loaded canaries: name, version, percent and per of each."""
        route = self.route()
        return [
            {
                "name": name,
                "version": number,
                "percent": route.routed.get(name, 0),
                "per": route.per,
            }
            for name, number in self.loaded().items()
        ]

    def routed_version(self, version: int | None) -> int:
        """The version of the one canary that gets traffic; PublishFailed unless there is exactly
        one."""
        routed = self.routed()
        if version is not None:
            if version not in routed.values():
                raise PublishFailed(
                    f"{self.what_runs()}: version {version} is not a running canary"
                )
            return version
        if len(routed) == 1:
            return next(iter(routed.values()))
        if routed:
            raise PublishFailed(f"{self.what_runs()}: choose one with --version")
        raise PublishFailed(self._none())

    def _is_stale(self, model: str) -> bool:
        """Whether it is a canary that is no longer in the repository, so that its route is dead."""
        is_canary_name = model.removeprefix(f"{self.name}.v").isdecimal()
        return is_canary_name and not self.repository.is_published(model)

    def _clear(self, deployment: "Deployment", names: set[str]) -> list[str]:
        loaded = self.loaded()
        for name in sorted(names & set(loaded)):
            self.report(f"{name}: waiting until nobody is routed there, and unloading it")
            stop(deployment, self.name, loaded[name])
        return sorted({*(names & set(loaded)), *unload_left(deployment, self.name)})

    def _put(self, weights: dict[str, int], per: Per) -> None:
        for path in self.policies:
            set_weights(path, self.name, weights, per)

    def _wait(self) -> None:
        self.report(f"{self.name}: waiting until every gateway has applied the new weights")
        for path in self.policies:
            wait_until_taken(path)

    def _refusal(self, other: str, share: int, per: Per) -> str:
        runs = f"{other} gets {share_of(share, per, self.name)}, and only one canary runs at a time"
        if other not in self.loaded():
            files = ", ".join(map(str, self.policies))
            return (
                f"{runs}: {other} was not made by `tidegate canary`; remove it from {files} first"
            )
        return (
            f"{runs}: tidegate promote {self.name} sends everyone there, tidegate canary "
            f"{self.name} --weight 0 ends it"
        )

    def what_runs(self) -> str:
        """Which canary gets traffic, or how to start one."""
        route = self.route()
        shares = [
            f"{canary} gets {share_of(route.routed[canary], route.per, self.name)}"
            for canary in self.routed()
        ]
        return "; ".join(shares) or self._none()

    def _none(self) -> str:
        command = f"tidegate canary {self.name} --weight 10"
        if loaded := self.loaded():
            canaries = ", ".join(loaded)
            return (
                f"{self.name} has no canary that gets traffic ({canaries} is only loaded): "
                f"{command} sends it some, tidegate canary {self.name} --weight 0 ends it"
            )
        others = ", ".join(self.route().routed)
        detail = f" (gateway.toml routes to {others}, which is not a canary)" if others else ""
        return f"{self.name} has no canary{detail}: {command} starts one"


def share_of(percent: int, per: Per, name: str) -> str:
    """A weight in words, such as ``10 % of the callers of mood``."""
    unit = "callers" if per == PER else "requests"
    return f"{percent} % of the {unit} of {name}"


@dataclass(frozen=True)
class CanaryOptions:
    """``percent`` 0 ends the canary; ``version`` None is the newest that is not active, or the one
    that runs; ``per`` None keeps what a running canary has."""

    name: str
    percent: int
    version: int | None = None
    per: Per | None = None


@dataclass(frozen=True)
class CanaryChange:
    """The canaries after a change: ``running`` has name, version, percent and per of each,
    ``removed`` the names of those that ended, ``silent`` the servers that did not answer."""

    options: CanaryOptions
    repository: Path
    version: int | None
    running: Sequence[dict[str, Any]]
    removed: Sequence[str]
    served_by: Sequence[str]
    silent: Sequence[str]

    def as_dict(self) -> dict[str, object]:
        return {
            "pipeline": self.options.name,
            "repository": str(self.repository),
            "canaries": self.running,
            "gone": self.removed,
            "served_by": self.served_by,
            "no_answer_from": self.silent,
        }

    def lines(self) -> Iterator[str]:
        name, percent = self.options.name, self.options.percent
        if self.version is None:
            routed = [canary["name"] for canary in self.running if canary["percent"]]
            remainder = f"{', '.join(routed)} stays" if routed else f"{name} serves everyone"
            yield f"{', '.join(self.removed)} was removed: {remainder}{self._pending()}"
            return
        for canary in self.removed:
            yield f"{canary} was loaded but got no traffic: it was removed"
        canary = canary_name(name, self.version)
        per = next(route["per"] for route in self.running if route["name"] == canary)
        yield f"{canary} gets {share_of(percent, per, name)}{self._pending()}"

    def _pending(self) -> str:
        """Which servers the change has not reached yet, as the end of a message; '' if it has
        reached all."""
        if self.silent:
            return (
                f". {', '.join(self.silent)} did not answer and was not changed: run the same "
                "command again when it does"
            )
        if not self.served_by:
            return (
                " from the next start on: no running server was found for this repository (name "
                "one elsewhere with --server HOST:PORT)"
            )
        return ""


def set_canary(
    options: CanaryOptions,
    paths: "Paths",
    report: Progress,
    grace_s: float,
    addresses: Sequence[str],
) -> CanaryChange:
    """Start, change or end the canary of a pipeline on every server of the repository. Raises
    PublishFailed."""
    repository, version = ModelRepository(paths.repository), options.version
    with rollout.deployment(paths, repository, report, grace_s, addresses) as deployment:
        servers = rollout.running(paths, repository)
        canaries = Canaries(repository, options.name, policies(paths, servers), report)
        if options.percent == 0:
            names = None if version is None else {canary_name(options.name, version)}
            if names and not names & set(canaries.loaded()):
                raise PublishFailed(f"{options.name} has no canary of version {version}")
            removed = canaries.end(deployment, names)
            if not removed:
                raise PublishFailed(f"{options.name} has no canary")
            started = None
        else:
            started = version or default_version(canaries)
            removed = canaries.begin(deployment, started, options.percent, options.per)
        return CanaryChange(
            options,
            repository.path,
            started,
            canaries.shares(),
            removed,
            [replica.address for replica in deployment.replicas],
            list(deployment.silent),
        )


@dataclass(frozen=True)
class RunningCanaries:
    """The canaries of a pipeline, as ``Canaries.shares``, and in words."""

    canaries: Sequence[dict[str, Any]]
    line: str


def running_canaries(name: str, paths: "Paths") -> RunningCanaries:
    """What runs now. ServingError if there is no such pipeline."""
    repository = ModelRepository(paths.repository)
    repository.require_published(name)
    files = policies(paths, rollout.running(paths, repository))
    canaries = Canaries(repository, name, files)
    return RunningCanaries(canaries.shares(), canaries.what_runs())


def promote_canary(
    paths: "Paths",
    name: str,
    version: int | None,
    report: Progress,
    grace_s: float,
    addresses: Sequence[str],
) -> rollout.Outcome:
    """Make the canary's version (``version``, if several run) the active one, and end the canary.
    Raises PublishFailed."""
    repository = ModelRepository(paths.repository)
    repository.require_published(name)
    with rollout.deployment(paths, repository, report, grace_s, addresses) as deployment:
        files = policies(paths, rollout.running(paths, repository))
        canaries = Canaries(repository, name, files, report)
        number, before = canaries.routed_version(version), repository.active_version(name)
        report(f"{name}: making version {number} the active one")
        promote(deployment, name, number)
        canaries.end(deployment)
        outcome = rollout.Outcome.of(deployment, paths, name, number)
        return replace(outcome, before=before if before != number else 0)


def default_version(canaries: Canaries) -> int:
    """The running canary's version, or the newest version that is not active."""
    candidates = list(canaries.routed().values()) or list(canaries.loaded().values())
    candidates = candidates or [
        version.number
        for version in canaries.repository.published_versions(canaries.name)
        if not version.is_active
    ]
    if not candidates:
        raise PublishFailed(f"{canaries.name} has no other version")
    return candidates[-1]
