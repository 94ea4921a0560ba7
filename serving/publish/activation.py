"""Move a pipeline's pin: the candidate is probed first, then the config changes, then the servers
follow one by one."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.pbtxt import render
from serving.errors import RolloutStopped, ServingError
from serving.publish.candidate import try_out
from serving.publish.deployment import Deployment
from serving.publish.journal import Journal
from serving.publish.phases import PublishPhase
from serving.publish.recovery import resolve
from serving.repository.configs import is_ensemble, with_versions
from serving.repository.manifest import CONFIG_COPY


@contextmanager
def undone_on_failure(deployment: Deployment, journal: Journal) -> Iterator[None]:
    """Whatever fails before the pin has moved is undone."""
    try:
        yield
    except RolloutStopped:
        journal.close(deployment.repository)
        raise
    except BaseException:  # Ctrl-C too
        resolve(deployment, journal)
        raise


def activate(deployment: Deployment, journal: Journal, config: ModelConfig) -> None:
    """Take the pipeline to ``journal.after``, whose pinned config is ``config``. The members are in
    place and list the new versions beside the old ones."""
    repository, name = deployment.repository, journal.pipeline
    if journal.before:
        # The pins of a version that was put there by hand: without them there is no way back.
        copy = repository.version_folder(name, journal.before) / CONFIG_COPY
        active = repository.config(name)
        if is_ensemble(active) and not copy.is_file():
            repository.write(copy, render(with_versions(active, ())).encode())
    if deployment.replicas:
        try_out(deployment, name, journal.after, config)

    # One rename: from here on the new version is the state of the repository. A first publication
    # leaves the config as declared: there is nothing else to serve.
    is_first = repository.versions(name) == [1] and is_ensemble(config)
    repository.write_config(name, config, [] if is_first else [journal.after])
    deployment.report(PublishPhase.PINNED, name)

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
    deployment.report(PublishPhase.SERVED, name)

    if deployment.replicas and journal.before:
        time.sleep(deployment.grace_s)
    deployment.retire_unpinned(journal.members)
    deployment.report(PublishPhase.RETIRED, name)
    journal.close(repository)
    deployment.report(PublishPhase.DONE, name)
