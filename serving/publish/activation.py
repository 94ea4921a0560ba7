"""Move a pipeline's pin: the candidate is probed first, then the config changes, then the servers
follow one by one."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.layout import version_folders
from serving.errors import RolloutStopped, ServingError
from serving.publish.candidate import try_out
from serving.publish.deployment import Deployment
from serving.publish.journal import Journal
from serving.publish.phases import PublishPhase
from serving.publish.plan import CONFIG_COPY
from serving.publish.recovery import resolve
from serving.repository.config_profiles import place_config
from serving.repository.files import place
from serving.repository.model_repository import read_config
from serving.repository.pins import as_bytes, is_ensemble, with_versions

Switch = Callable[[ModelConfig], None]


@contextmanager
def activate(deployment: Deployment, journal: Journal) -> Iterator[Switch]:
    """Yield the switch to ``journal.after``: call it with the pinned config once the members are in
    place. Whatever fails before the pin has moved is undone."""
    try:
        yield lambda config: _switch(deployment, journal, config)
    except RolloutStopped:
        journal.close(deployment.repository)
        raise
    except BaseException:  # Ctrl-C too
        resolve(deployment, journal)
        raise


def _switch(deployment: Deployment, journal: Journal, config: ModelConfig) -> None:
    name = journal.pipeline
    _save_pins(deployment.repository, name, journal.before)
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
    # A first publication leaves the config as declared: there is nothing else to serve.
    is_first = version_folders(folder) == [1] and is_ensemble(config)
    versions = [] if is_first else [journal.after]
    place_config(deployment.repository, journal.pipeline, with_versions(config, versions))


def _save_pins(repository: Path, name: str, active: int) -> None:
    """Save the pins of an active version that was put there by hand: without them there is no way
    back."""
    if not active:
        return
    copy = repository / name / str(active) / CONFIG_COPY
    config = read_config(repository, name)
    if is_ensemble(config) and not copy.is_file():
        place(repository, copy, as_bytes(with_versions(config, ())))


def _roll_over(deployment: Deployment, journal: Journal, config: ModelConfig) -> None:
    name = journal.pipeline
    updated: list[str] = []
    for replica in deployment.replicas:
        try:
            replica.control.load(name)
            replica.require_golden(name, config, is_proved=True)
        except ServingError as error:
            remaining = len(deployment.replicas) - len(updated)
            undo = f"tidegate rollback {name} --to {journal.before}"
            raise RolloutStopped(
                f"version {journal.after} of {name} is pinned, and {len(updated)} of "
                f"{len(deployment.replicas)} servers serve it ({', '.join(updated) or 'none'}); "
                f"{replica.address} rejected it: {error}. {remaining} to go. To finish: "
                f"tidegate publish {name}" + (f". To undo: {undo}" if journal.before else "")
            ) from error
        updated.append(replica.address)
