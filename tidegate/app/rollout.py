"""Shared by the verbs that change a repository: its servers, and a line for each phase."""

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tidegate.app.paths import Address, Paths
from tidegate.commands.convert import progress

if TYPE_CHECKING:
    from serving.publish.deployment import Deployment
    from serving.triton.servers import Server

repositories = click.option(
    "--repository",
    "repositories",
    multiple=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The repository; several are changed one after the other. Default: model_repository/.",
)
grace = click.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(0, 3600),
    default=2.0,
    show_default=True,
    help="Seconds that the old version stays loaded after the change; a canary stays until the "
    "gateways no longer route to it, and for at least 2 s.",
)

servers = click.option(
    "--server",
    "addresses",
    multiple=True,
    type=Address(),
    help="A Triton (gRPC) that serves the repository but is not found automatically: on another "
    "machine, or in another container. Its key is read from TIDEGATE_TRITON_KEY_FILE, else "
    ".tidegate/triton.key.",
)
repository = click.option(
    "--repository",
    "repository",
    type=click.Path(file_okay=False, path_type=Path),
    help="The repository. Default: model_repository/.",
)


@contextmanager
def deployment(
    paths: Paths,
    repository: Path,
    grace_s: float = 2.0,
    addresses: Sequence[str] = (),
    *,
    as_json: bool = False,
) -> Iterator["Deployment"]:
    """The repository with every server that runs on it now, and those at ``addresses``. Phases are
    printed as they complete, to stderr if stdout holds JSON. PublishFailed if one of those does not
    answer."""
    from serving.errors import PublishFailed
    from serving.publish.deployment import Deployment
    from serving.publish.phases import PublishPhase
    from serving.publish.replica import connected

    say = progress(err=as_json)
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

        def tell(phase: PublishPhase, subject: str) -> None:
            is_served = phase is PublishPhase.SERVED
            say(f"{subject}: {_who_serves(answering, silent) if is_served else phase.value}")

        yield Deployment(repository, replicas, tell, grace_s, silent)


def running(paths: Paths, repository: Path, addresses: Sequence[str] = ()) -> list["Server"]:
    """The servers that run on the repository, and those at ``addresses``."""
    from serving.triton.servers import Server, servers_of

    registered = servers_of(paths.state, repository)
    registered_addresses = {server.address for server in registered}
    key = os.environ.get("TIDEGATE_TRITON_KEY_FILE", str(paths.triton_key))
    others = [
        address for address in dict.fromkeys(addresses) if address not in registered_addresses
    ]
    return [*registered, *(Server(str(repository), address, key) for address in others)]


def _who_serves(answering: Collection[str], silent: Sequence[str]) -> str:
    summary = f"served by {', '.join(sorted(answering))}" if answering else "no server was notified"
    return f"{summary}; no answer from {', '.join(silent)}" if silent else summary


def outcome(deployment: "Deployment", paths: Paths, name: str, version: int) -> str:
    """The last line of a verb that moved the pin: who serves the version now."""
    where = f"{paths.shown(deployment.repository)}/"
    if deployment.replicas:
        message = f"{name}: version {version} serves from {where}"
    else:
        message = (
            f"{name}: version {version} is the active one in {where}; no running server was "
            "found for it: the next start serves it (name one elsewhere with --server HOST:PORT)"
        )
    if deployment.silent:
        message += (
            f". {', '.join(deployment.silent)} did not answer and may serve another version: when "
            f"it answers, run tidegate publish {name}"
        )
    return message


def document(deployment: "Deployment", name: str, version: int) -> dict[str, Any]:
    """The same as JSON: which servers took the version, and which did not answer."""
    return {
        "pipeline": name,
        "version": version,
        "repository": str(deployment.repository),
        "served_by": [replica.address for replica in deployment.replicas],
        "no_answer_from": list(deployment.silent),
    }


def selected_repositories(paths: Paths, requested: tuple[Path, ...]) -> list[Path]:
    return [path.resolve() for path in requested] or [paths.repository]


def selected_repository(paths: Paths, requested: Path | None) -> Path:
    return requested.resolve() if requested else paths.repository


def deployments(
    paths: Paths,
    requested: tuple[Path, ...],
    grace_s: float,
    addresses: Sequence[str] = (),
    *,
    as_json: bool = False,
) -> Iterator["Deployment"]:
    """A deployment for each repository in turn. The first that fails ends the verb: the ones before
    it stay changed, and the error names those that are not."""
    from serving.errors import RolloutStopped, ServingError

    repositories = selected_repositories(paths, requested)
    if addresses and len(repositories) > 1:
        raise click.UsageError(
            "--server does not name a repository: pass exactly one --repository with it"
        )
    for count, path in enumerate(repositories):
        try:
            with deployment(paths, path, grace_s, addresses, as_json=as_json) as current:
                yield current
        except ServingError as error:
            if not count:
                raise
            unchanged = ", ".join(paths.shown(path) for path in repositories[count:])
            changed = ", ".join(paths.shown(path) for path in repositories[:count])
            raise RolloutStopped(
                f"{error}. Changed: {changed}; not changed: {unchanged}. To finish, run this again "
                "with --repository for each unchanged one; to undo, roll back the changed ones"
            ) from error
