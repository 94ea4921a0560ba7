"""Recovery after an interrupted publisher: to the old state or the new one, without leftovers."""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from modelspec.held import is_held, is_held_folder
from modelspec.layout import CONFIG_FILE
from serving.errors import NotOurServer, RepositoryBusy
from serving.publish import candidate
from serving.publish.deployment import Deployment
from serving.publish.journal import Journal, journals
from serving.publish.replica import connected
from serving.publish.restore import restore_readiness
from serving.repository.model_repository import ModelRepository
from serving.triton.servers import FOLDER as SERVERS
from serving.triton.servers import Server

_STALE_S = 24 * 3600.0
_PERMANENT = frozenset({"lock", SERVERS})


def clear_up(
    repository: ModelRepository,
    servers: Sequence[Server] = (),
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """What ``tidegate up`` does first. Does nothing while another process publishes, or if the
    repository is read-only.

    ``report`` is called with journals that cannot be read. They are set aside, and keep nothing
    from being served or published: a pipeline's config says what it serves.
    """
    if not repository.path.is_dir() or not os.access(repository.staging, os.W_OK):
        return
    try:
        with repository.lock("clearing up", wait_s=0), connected(servers) as replicas:
            for path, reason in journals(repository)[1]:
                aside = path.with_name(f"broken-{path.name}")
                report(
                    f"{path} cannot be read ({reason}): what that publication left is not cleared "
                    f"up, and the file was renamed to {aside.name}"
                )
                path.replace(aside)
            recover(Deployment(repository, replicas))
    except (RepositoryBusy, NotOurServer):
        return  # the next publisher that may talk to the servers recovers


def recover(deployment: Deployment) -> None:
    """Finish or undo interrupted publications and delete abandoned files; call this with the lock
    held."""
    repository = deployment.repository
    for journal in journals(repository)[0]:
        resolve(deployment, journal)
    repository.sync_all_profiles()
    for path in repository.staging.iterdir():
        if path.name in _PERMANENT:
            continue
        if is_held_folder(path):
            is_abandoned = not is_held(path)
        else:
            is_abandoned = repository.is_leftover(path) or _is_old(path)
        if is_abandoned and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif is_abandoned:
            path.unlink(missing_ok=True)


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _STALE_S
    except OSError:  # it is gone
        return False


def resolve(deployment: Deployment, journal: Journal) -> None:
    """Finish the publication if its pin is in place, else undo it."""
    repository = deployment.repository
    candidate.clear(deployment, journal.pipeline)
    if repository.active_version(journal.pipeline) == journal.after:
        for model in journal.configs:
            repository.sync_profiles(model)
        for replica in deployment.replicas:
            replica.control.load(journal.pipeline)
        deployment.retire_unpinned(journal.members)
    else:
        _undo(deployment, journal)
    journal.close(repository)


def _undo(deployment: Deployment, journal: Journal) -> None:
    """Restore the configs, then unload the new versions on the servers, then delete them."""
    repository = deployment.repository
    for model, text in journal.configs.items():
        if text:
            repository.write(repository.folder(model) / CONFIG_FILE, text.encode())
    repository.restore_profiles(journal.configs, journal.profiles)
    for replica in deployment.replicas:
        for model in journal.configs:
            new = {version for name, version in journal.new if name == model}
            if not replica.serves(model):
                continue
            if set(repository.versions(model)) - new:
                replica.control.load(model)
            else:
                replica.drop(model)
        restore_readiness(repository, replica, journal)
    for model, version in journal.new:
        repository.remove_version(model, version)
    for model, text in journal.configs.items():
        if text is None and not repository.versions(model):
            repository.remove(model)
        elif text == "":
            (repository.folder(model) / CONFIG_FILE).unlink(missing_ok=True)
