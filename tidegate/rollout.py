"""What the verbs that change a repository share: its servers, and a line for each step."""

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tidegate.convert import clock
from tidegate.paths import Address, Paths

if TYPE_CHECKING:
    from serving.deployment import Deployment
    from serving.servers import Server

repositories = click.option(
    "--repository",
    "repositories",
    multiple=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The repository; several are taken one after the other. Default: model_repository/.",
)
grace = click.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(0, 3600),
    default=2.0,
    show_default=True,
    help="Seconds that the old version stays loaded after the change; a canary stays until the "
    "gateways send nobody there, and 2 s at least.",
)

servers = click.option(
    "--server",
    "addresses",
    multiple=True,
    type=Address(),
    help="A Triton (gRPC) that serves the repository and is not found by itself: on another "
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
    """The repository with every server on it that runs now, and those at ``addresses``; their
    steps are told as they come, on stderr where stdout has JSON."""
    from serving.deployment import Deployment
    from serving.errors import PublishFailed
    from serving.publish_phase import PublishPhase
    from serving.replica import connected

    say = clock(err=as_json)
    found = running(paths, repository, addresses)
    with connected(found) as replicas:
        answering = {replica.address for replica in replicas}
        silent = [each.address for each in found if each.address not in answering]
        missing = [each for each in addresses if each in silent]
        if missing:
            raise PublishFailed(
                f"no Triton answers at {missing[0]} (gRPC): nothing was changed. Check the address "
                "given with --server"
            )

        def tell(step: PublishPhase, what: str) -> None:
            is_served = step is PublishPhase.SERVED
            say(f"{what}: {_who_serves(answering, silent) if is_served else step.value}")

        yield Deployment(repository, replicas, tell, grace_s, silent)


def running(paths: Paths, repository: Path, addresses: Sequence[str] = ()) -> list["Server"]:
    """The servers that run on the repository, and those that were named."""
    from serving.servers import Server, servers_of

    found = servers_of(paths.state, repository)
    known = {each.address for each in found}
    key = os.environ.get("TIDEGATE_TRITON_KEY_FILE", str(paths.triton_key))
    more = [each for each in dict.fromkeys(addresses) if each not in known]
    return [*found, *(Server(str(repository), address, key) for address in more)]


def _who_serves(answering: Collection[str], silent: Sequence[str]) -> str:
    reported = f"served by {', '.join(sorted(answering))}" if answering else "no server was told"
    return f"{reported}; no answer from {', '.join(silent)}" if silent else reported


def outcome(deployment: "Deployment", paths: Paths, name: str, version: int) -> str:
    """What a verb that moved the pin says at its end: who serves the version now."""
    where = f"{paths.shown(deployment.repository)}/"
    if deployment.replicas:
        done = f"{name}: version {version} serves from {where}"
    else:
        done = (
            f"{name}: version {version} is the active one in {where}; no server was found that "
            "runs on it: the next start serves it (for one that runs elsewhere give --server "
            "HOST:PORT)"
        )
    if deployment.silent:
        done += (
            f". {', '.join(deployment.silent)} did not answer and may serve "
            "another version: when it "
            f"answers, run tidegate publish {name}"
        )
    return done


def document(deployment: "Deployment", name: str, version: int) -> dict[str, Any]:
    """The same for a program: who took the version, and who did not answer."""
    return {
        "pipeline": name,
        "version": version,
        "repository": str(deployment.repository),
        "served_by": [replica.address for replica in deployment.replicas],
        "no_answer_from": list(deployment.silent),
    }


def chosen(paths: Paths, given: tuple[Path, ...]) -> list[Path]:
    return [path.resolve() for path in given] or [paths.repository]


def one(paths: Paths, given: Path | None) -> Path:
    return given.resolve() if given else paths.repository


def each(
    paths: Paths,
    given: tuple[Path, ...],
    grace_s: float,
    addresses: Sequence[str] = (),
    *,
    as_json: bool = False,
) -> Iterator["Deployment"]:
    """A target for each repository in turn. The first that fails ends the verb: the ones before it
    are changed, and the line on stderr says which are not."""
    from serving.errors import RolloutStopped, ServingError

    repositories = chosen(paths, given)
    if addresses and len(repositories) > 1:
        raise click.UsageError("--server says no repository: give one --repository with it")
    for done, path in enumerate(repositories):
        try:
            with deployment(paths, path, grace_s, addresses, as_json=as_json) as found:
                yield found
        except ServingError as error:
            if not done:
                raise
            left = ", ".join(paths.shown(each) for each in repositories[done:])
            changed = ", ".join(paths.shown(each) for each in repositories[:done])
            raise RolloutStopped(
                f"{error}. Changed: {changed}; not changed: {left}. To finish, run this again with "
                "--repository for each that is left; to undo, roll back the ones that are changed"
            ) from error
