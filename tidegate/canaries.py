"""The canary of a pipeline, from both places that know of it: the repository, where it is a
pipeline of its own, and ``[routes]`` in the ``gateway.toml`` of each stack that serves the
repository, which says who is sent there."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from serving.canary import canaries, canary_name, start, stop, unload_left
from serving.errors import PublishFailed, ServingError
from serving.repository import is_published
from tidegate.routes_file import PER, Per, Route, read_route, set_weights, wait_until_taken

if TYPE_CHECKING:
    from serving.deployment import Deployment
    from serving.servers import Server
    from tidegate.paths import Paths


def policies(paths: "Paths", servers: Sequence["Server"]) -> list[Path]:
    """The ``gateway.toml`` of each home that serves the repository now; without any, our own."""
    found = [Path(each.work_dir) / paths.policy.name for each in servers if each.work_dir]
    return list(dict.fromkeys(path.resolve() for path in found)) or [paths.policy]


def beside_pipelines(repository: Path, policy: Path, names: Sequence[str]) -> list[str]:
    """What is to be served with these pipelines: their canaries, and whatever else their callers
    are sent to."""
    found: list[str] = []
    for name in names:
        try:
            routed = list(read_route(policy, name).routed)
        except (OSError, ServingError):  # the gateway says what is wrong with the file
            routed = []
        loaded = [canary_name(name, each) for each in canaries(repository, name)]
        found += [*loaded, *(each for each in routed if is_published(repository, each))]
    return found


@dataclass(frozen=True)
class Canaries:
    """The canaries of the pipeline ``name``; ``policies`` are the files that route to them."""

    repository: Path
    name: str
    policies: Sequence[Path]

    def route(self) -> Route:
        """What all the files say; ServingError if they differ."""
        found = [read_route(path, self.name) for path in self.policies]
        if any(each != found[0] for each in found):
            files = ", ".join(map(str, self.policies))
            raise ServingError(
                f"these differ in [routes.{self.name}], make them equal first: {files}"
            )
        return found[0]

    def loaded(self) -> dict[str, int]:
        """The canaries in the repository: their names, and the version of each."""
        return {canary_name(self.name, each): each for each in canaries(self.repository, self.name)}

    def routed(self) -> dict[str, int]:
        """Those of them that get anything: their names, and the version of each."""
        loaded = self.loaded()
        return {name: loaded[name] for name in self.route().routed if name in loaded}

    def begin(
        self, deployment: "Deployment", version: int, percent: int, per: Per | None
    ) -> list[str]:
        """Serve the version as the canary, and send it that many percent; the names of canaries
        that nobody was sent to and that are gone now. PublishFailed while another one runs."""
        route, canary = self.route(), canary_name(self.name, version)
        for other, share in route.routed.items():
            if other != canary and not self._is_stale(other):
                raise PublishFailed(self._refusal(other, share, route.per))
        gone = self._clear(deployment, set(self.loaded()) - {canary})
        was_there = canary in self.loaded()
        start(deployment, self.name, version)
        try:
            self._put({canary: percent}, per or route.per)
        except (OSError, ServingError):
            if not was_there:
                stop(deployment, self.name, version)
            raise
        self._wait()
        return gone

    def end(self, deployment: "Deployment", wanted: set[str] | None = None) -> list[str]:
        """Send nobody to these canaries (to all of them, without), and take them away: their
        names. What else is routed stays."""
        route = self.route()
        going = set(self.loaded()) if wanted is None else wanted
        left = {
            name: percent
            for name, percent in route.weights.items()
            if name not in going and not self._is_stale(name)
        }
        if left != route.weights:
            self._put(left, route.per)
            self._wait()
        return sorted({*self._clear(deployment, going), *set(route.weights) - set(left)})

    def the_routed(self, version: int | None) -> int:
        """The version of the canary that gets a share; PublishFailed if that is not one."""
        routed = self.routed()
        if version is not None:
            if version not in routed.values():
                raise PublishFailed(f"{self._what_runs()}: version {version} is not being tried")
            return version
        if len(routed) == 1:
            return next(iter(routed.values()))
        if routed:
            raise PublishFailed(f"{self._what_runs()}: say which with --version")
        raise PublishFailed(self._none())

    def _is_stale(self, model: str) -> bool:
        """Whether it is routed for nothing: a canary that is no more in the repository."""
        is_called_so = model.removeprefix(f"{self.name}.v").isdecimal()
        return is_called_so and not is_published(self.repository, model)

    def _clear(self, deployment: "Deployment", names: set[str]) -> list[str]:
        loaded = self.loaded()
        for name in sorted(names & set(loaded)):
            stop(deployment, self.name, loaded[name])
        return sorted({*(names & set(loaded)), *unload_left(deployment, self.name)})

    def _put(self, weights: dict[str, int], per: Per) -> None:
        for path in self.policies:
            set_weights(path, self.name, weights, per)

    def _wait(self) -> None:
        for path in self.policies:
            wait_until_taken(path)

    def _refusal(self, other: str, share: int, per: Per) -> str:
        runs = f"{other} gets {share_of(share, per, self.name)}, and one canary runs at a time"
        if other not in self.loaded():
            where = ", ".join(map(str, self.policies))
            return f"{runs}: {other} is none of `tidegate canary`; take it out of {where} first"
        return (
            f"{runs}: tidegate promote {self.name} lets everybody have it, tidegate canary "
            f"{self.name} --weight 0 ends it"
        )

    def _what_runs(self) -> str:
        route = self.route()
        shares = [
            f"{each} gets {share_of(route.routed[each], route.per, self.name)}"
            for each in self.routed()
        ]
        return "; ".join(shares) or self._none()

    def _none(self) -> str:
        begin = f"tidegate canary {self.name} --weight 10"
        if loaded := self.loaded():
            there = ", ".join(loaded)
            return (
                f"{self.name} has no canary that anybody is sent to ({there} is loaded only): "
                f"{begin} sends some, tidegate canary {self.name} --weight 0 ends it"
            )
        others = ", ".join(self.route().routed)
        also = f" (gateway.toml sends some to {others}, which is none)" if others else ""
        return f"{self.name} has no canary{also}: {begin} makes one"


def share_of(percent: int, per: Per, name: str) -> str:
    """``10 % of the callers of mood``: what a weight is a part of."""
    what = "callers" if per == PER else "requests"
    return f"{percent} % of the {what} of {name}"
