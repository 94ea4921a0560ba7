"""A change of one or several repositories, on every server that runs on them."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.app.errors import UsageError
from tidegate.app.paths import Paths
from tidegate.app.progress import Progress

if TYPE_CHECKING:
    from serving.publish.deployment import Deployment
    from serving.repository.model_repository import ModelRepository
    from serving.triton.servers import Server


@contextmanager
def deployment(
    paths: Paths,
    repository: "ModelRepository",
    report: Progress,
    grace_s: float = 2.0,
    addresses: Sequence[str] = (),
) -> Iterator["Deployment"]:
    """The repository with every server that runs on it now, and those at ``addresses``.
    ``report`` is called as each phase completes. PublishFailed if one of ``addresses`` does not
    answer."""
    from serving.errors import PublishFailed
    from serving.publish.deployment import Deployment
    from serving.publish.phases import PublishPhase
    from serving.publish.replica import connected

    known = running(paths, repository, addresses)
    with connected(known) as replicas:
        answering = {replica.address for replica in replicas}
        silent = [server.address for server in known if server.address not in answering]
        missing = [address for address in addresses if address in silent]
        if missing:
            raise PublishFailed(
                f"no Triton answers at {missing[0]} (gRPC): nothing was changed. Check the address "
                "passed with --server"
            )

        def report_phase(phase: PublishPhase, subject: str) -> None:
            summary = phase.value
            if phase is PublishPhase.SERVED:
                serving = f"served by {', '.join(sorted(answering))}"
                summary = serving if answering else "no server was notified"
                summary += f"; no answer from {', '.join(silent)}" if silent else ""
            report(f"{subject}: {summary}")

        yield Deployment(repository, replicas, report_phase, grace_s, silent)


def running(
    paths: Paths, repository: "ModelRepository", addresses: Sequence[str] = ()
) -> list["Server"]:
    """The servers that run on the repository, the first replica first, and those at
    ``addresses``."""
    from serving.triton.servers import Server, servers_of

    registered = sorted(servers_of(paths.state, repository.path), key=_place)
    registered_addresses = {server.address for server in registered}
    key = os.environ.get("TIDEGATE_TRITON_KEY_FILE", str(paths.triton_key))
    others = [
        address for address in dict.fromkeys(addresses) if address not in registered_addresses
    ]
    return [*registered, *(Server(str(repository), address, key) for address in others)]


def _place(server: "Server") -> tuple[str, int]:
    """For sorting: the port as a number, since 8011 comes after 8001 and before 18001."""
    host, _, port = server.address.rpartition(":")
    return host, int(port) if port.isdecimal() else 0


@dataclass(frozen=True)
class Outcome:
    """The ``version`` of the pipeline ``name`` that is active now, who serves it, and which servers
    (``silent``) did not answer."""

    name: str
    version: int
    repository: Path
    served_by: Sequence[str]
    silent: Sequence[str]
    shown_as: str  # the repository, as a user writes it
    before: int = 0  # the version that was active before; 0 if it is not known, or the same

    @classmethod
    def of(cls, deployment: "Deployment", paths: Paths, name: str, version: int) -> "Outcome":
        return cls(
            name,
            version,
            deployment.repository.path,
            [replica.address for replica in deployment.replicas],
            list(deployment.silent),
            f"{paths.shown(deployment.repository.path)}/",
        )

    def as_dict(self) -> dict[str, object]:
        return {
            "pipeline": self.name,
            "version": self.version,
            "repository": str(self.repository),
            "served_by": self.served_by,
            "no_answer_from": self.silent,
        }

    def line(self) -> str:
        """The last line of a verb that moved the pin."""
        if self.served_by:
            message = f"{self.name}: version {self.version} serves from {self.shown_as}"
        else:
            message = (
                f"{self.name}: version {self.version} is the active one in {self.shown_as}; no "
                "running server was found for it: the next start serves it (name one elsewhere "
                "with --server HOST:PORT)"
            )
        if self.silent:
            message += (
                f". {', '.join(self.silent)} did not answer and may serve another version: when "
                f"it answers, run tidegate publish {self.name}"
            )
        return message


@dataclass(frozen=True)
class RolloutOptions:
    """``repositories`` are changed one after the other (none: that of ``paths``); ``addresses``
    are Tritons that are not found automatically, allowed with one repository only."""

    repositories: Sequence[Path] = ()
    addresses: Sequence[str] = ()
    grace_s: float = 2.0


def roll_out(
    change: Callable[["Deployment"], tuple[str, int]],
    options: RolloutOptions,
    paths: Paths,
    report: Progress,
) -> Iterator[Outcome]:
    """Apply ``change``, which returns a pipeline's name and active version, to each repository.

    The first that fails ends it: the ones before it stay changed, and the error names those that
    are not (RolloutStopped).
    """
    from serving.errors import RolloutStopped, ServingError
    from serving.repository.model_repository import ModelRepository

    repositories = [path.resolve() for path in options.repositories] or [paths.repository]
    if options.addresses and len(repositories) > 1:
        raise UsageError(
            "--server does not name a repository: pass exactly one --repository with it"
        )
    for count, path in enumerate(repositories):
        try:
            repository = ModelRepository(path)
            servers = deployment(paths, repository, report, options.grace_s, options.addresses)
            with servers as current:
                name, version = change(current)
                yield Outcome.of(current, paths, name, version)
        except ServingError as error:
            if not count:
                raise
            unchanged = ", ".join(paths.shown(path) for path in repositories[count:])
            changed = ", ".join(paths.shown(path) for path in repositories[:count])
            raise RolloutStopped(
                f"{error}. Changed: {changed}; not changed: {unchanged}. To finish, run this again "
                "with --repository for each unchanged one; to undo, roll back the changed ones"
            ) from error
