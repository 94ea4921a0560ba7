"""Move a pipeline's pin: the candidate is asked first, then the config changes, then the servers
follow one by one."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.layout import version_folders
from serving.candidate import try_out
from serving.config_profiles import place_config
from serving.deployment import Deployment
from serving.errors import RolloutStopped, ServingError
from serving.files import place
from serving.journal import Journal
from serving.pins import as_bytes, is_ensemble, with_versions
from serving.plan import CONFIG_COPY
from serving.publish_phase import PublishPhase
from serving.recovery import settle
from serving.repository import read_config

Switch = Callable[[ModelConfig], None]


@contextmanager
def activate(deployment: Deployment, journal: Journal) -> Iterator[Switch]:
    """Hands out the switch to ``journal.after``, to be called with its pinned config when its
    members are in place. What fails before the pin has moved is undone."""
    try:
        yield lambda config: _switch(deployment, journal, config)
    except RolloutStopped:
        journal.close(deployment.repository)
        raise
    except BaseException:  # Ctrl-C too
        settle(deployment, journal)
        raise


def _switch(deployment: Deployment, journal: Journal, config: ModelConfig) -> None:
    name = journal.pipeline
    _adopt(deployment.repository, name, journal.before)
    if deployment.replicas:
        try_out(deployment, name, journal.after, config)
    _pin(deployment, journal, config)
    deployment.tell(PublishPhase.PINNED, name)
    _roll_over(deployment, journal, config)
    deployment.tell(PublishPhase.SERVED, name)
    if deployment.replicas and journal.before:
        time.sleep(deployment.grace_s)
    deployment.list_needed(journal.members)
    deployment.tell(PublishPhase.RETIRED, name)
    journal.close(deployment.repository)
    deployment.tell(PublishPhase.DONE, name)


def _pin(deployment: Deployment, journal: Journal, config: ModelConfig) -> None:
    """One rename: from here on the new version is the state of the repository."""
    folder = deployment.repository / journal.pipeline
    # A first publication leaves the config as it was declared: there is nothing else to serve.
    is_first = version_folders(folder) == [1] and is_ensemble(config)
    versions = [] if is_first else [journal.after]
    place_config(deployment.repository, journal.pipeline, with_versions(config, versions))


def _adopt(repository: Path, name: str, active: int) -> None:
    """Keep the pins of an active version that was put there by hand: else there is no way back."""
    if not active:
        return
    copy = repository / name / str(active) / CONFIG_COPY
    config = read_config(repository, name)
    if is_ensemble(config) and not copy.is_file():
        place(repository, copy, as_bytes(with_versions(config, ())))


def _roll_over(deployment: Deployment, journal: Journal, config: ModelConfig) -> None:
    name = journal.pipeline
    done: list[str] = []
    for replica in deployment.replicas:
        try:
            replica.control.load(name)
            replica.require_golden(name, config, is_proved=True)
        except ServingError as error:
            left = len(deployment.replicas) - len(done)
            undo = f"tidegate rollback {name} --to {journal.before}"
            raise RolloutStopped(
                f"version {journal.after} of {name} is pinned, and {len(done)} of "
                f"{len(deployment.replicas)} servers serve it ({', '.join(done) or 'none'}); "
                f"{replica.address} did not take it: {error}. {left} to go. To finish: tidegate "
                f"publish {name}" + (f". To undo: {undo}" if journal.before else "")
            ) from error
        done.append(replica.address)
