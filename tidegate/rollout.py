"""What the verbs that change a repository share: its servers, and a line for each step."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tidegate.convert import clock
from tidegate.places import Places

if TYPE_CHECKING:
    from serving.target import Target

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
    help="Seconds that the old version stays loaded after the change.",
)


@contextmanager
def target(places: Places, repository: Path, grace_s: float = 2.0) -> Iterator["Target"]:
    """The repository with every server on it that runs now; their steps are told as they come."""
    from serving.replica import connected
    from serving.servers import servers_of
    from serving.target import Target

    say = clock()
    with connected(servers_of(places.state, repository)) as replicas:
        yield Target(repository, replicas, lambda step, what: say(f"{what}: {step.value}"), grace_s)


def chosen(places: Places, given: tuple[Path, ...]) -> list[Path]:
    return [path.resolve() for path in given] or [places.repository]


def each(places: Places, given: tuple[Path, ...], grace_s: float) -> Iterator["Target"]:
    """A target for each repository in turn. The first that fails ends the verb: the ones before it
    are changed, and the line on stderr says which are not."""
    from serving.errors import RolloutStopped, ServingError

    paths = chosen(places, given)
    for done, path in enumerate(paths):
        try:
            with target(places, path, grace_s) as one:
                yield one
        except ServingError as error:
            if not done:
                raise
            left = ", ".join(places.shown(each) for each in paths[done:])
            changed = ", ".join(places.shown(each) for each in paths[:done])
            raise RolloutStopped(
                f"{error}. Changed: {changed}; not changed: {left}. To finish, run this again with "
                "--repository for each that is left; to undo, roll back the ones that are changed"
            ) from error
