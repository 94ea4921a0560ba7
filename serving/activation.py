"""Move a pipeline's pin: the candidate is asked first, then the config changes, then the servers
follow one by one."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.layout import version_folders
from serving.candidate import try_out
from serving.errors import RolloutStopped, ServingError
from serving.files import place
from serving.journal import Journal
from serving.pins import as_bytes, is_ensemble, with_versions
from serving.plan import CONFIG_COPY
from serving.recovery import settle
from serving.repository import read_config
from serving.steps import Step
from serving.target import Target
from serving.variants import place_config

Switch = Callable[[ModelConfig], None]


@contextmanager
def activate(target: Target, journal: Journal) -> Iterator[Switch]:
    """Hands out the switch to ``journal.after``, to be called with its pinned config when its
    members are in place. What fails before the pin has moved is undone."""
    try:
        yield lambda config: _switch(target, journal, config)
    except RolloutStopped:
        journal.close(target.repository)
        raise
    except BaseException:  # Ctrl-C too
        settle(target, journal)
        raise


def _switch(target: Target, journal: Journal, config: ModelConfig) -> None:
    name = journal.pipeline
    _adopt(target.repository, name, journal.before)
    if target.replicas:
        try_out(target, name, journal.after, config)
    _pin(target, journal, config)
    target.tell(Step.PINNED, name)
    _roll_over(target, journal, config)
    target.tell(Step.SERVED, name)
    if target.replicas and journal.before:
        time.sleep(target.grace_s)
    target.list_needed(journal.members)
    target.tell(Step.RETIRED, name)
    journal.close(target.repository)
    target.tell(Step.DONE, name)


def _pin(target: Target, journal: Journal, config: ModelConfig) -> None:
    """One rename: from here on the new version is the state of the repository."""
    folder = target.repository / journal.pipeline
    # A first publication leaves the config as it was declared: there is nothing else to serve.
    is_first = version_folders(folder) == [1] and is_ensemble(config)
    versions = [] if is_first else [journal.after]
    place_config(target.repository, journal.pipeline, with_versions(config, versions))


def _adopt(repository: Path, name: str, active: int) -> None:
    """Keep the pins of an active version that was put there by hand: else there is no way back."""
    if not active:
        return
    copy = repository / name / str(active) / CONFIG_COPY
    config = read_config(repository, name)
    if is_ensemble(config) and not copy.is_file():
        place(repository, copy, as_bytes(with_versions(config, ())))


def _roll_over(target: Target, journal: Journal, config: ModelConfig) -> None:
    name = journal.pipeline
    done: list[str] = []
    for replica in target.replicas:
        try:
            replica.control.load(name)
            replica.require_golden(name, config, is_proved=True)
        except ServingError as error:
            left = len(target.replicas) - len(done)
            undo = f"tidegate rollback {name} --to {journal.before}"
            raise RolloutStopped(
                f"version {journal.after} of {name} is pinned, and {len(done)} of "
                f"{len(target.replicas)} servers serve it ({', '.join(done) or 'none'}); "
                f"{replica.address} did not take it: {error}. {left} to go. To finish: tidegate "
                f"publish {name}" + (f". To undo: {undo}" if journal.before else "")
            ) from error
        done.append(replica.address)
