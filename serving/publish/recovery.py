"""Recovery after an interrupted publisher: to the old state or the new one, without leftovers."""

import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from modelspec.layout import CONFIG_FILE, staging_folder, version_folders
from serving.errors import NotOurServer, RepositoryBusy
from serving.publish import candidate
from serving.publish.deployment import Deployment
from serving.publish.journal import Journal, broken_journals, open_journals
from serving.publish.replica import Replica, connected
from serving.publish.restore import restore_readiness
from serving.repository.config_profiles import put_back, sync_all, sync_configs
from serving.repository.files import place, remove_folder
from serving.repository.lock import publishing
from serving.repository.model_repository import active_version
from serving.triton.servers import FOLDER as SERVERS
from serving.triton.servers import Server

# See files.owned_path: created by a process that may have been killed.
_OWNED = re.compile(r"[^+]*\+(\d+)\+[^+]+\Z")
_STALE_S = 24 * 3600.0
_KEPT = frozenset({"lock", SERVERS})


def clear_up(
    repository: Path,
    servers: Sequence[Server] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """What ``tidegate up`` does first. Does nothing while another process publishes, or if the
    repository is read-only.

    ``tell`` is called with journals that cannot be read; they are set aside.
    """
    if not repository.is_dir() or not os.access(staging_folder(repository), os.W_OK):
        return
    try:
        with publishing(repository, "clearing up", wait_s=0), connected(servers) as replicas:
            set_aside_broken_journals(repository, tell)
            recover(Deployment(repository, replicas))
    except (RepositoryBusy, NotOurServer):
        return  # the next publisher that may talk to the servers recovers


def set_aside_broken_journals(repository: Path, tell: Callable[[str], None]) -> None:
    """Rename journals that cannot be read, and report them: they keep nothing from being served or
    published. A pipeline's config says what it serves; the killed publisher's other leftovers stay
    in its folders."""
    for path, reason in broken_journals(repository):
        aside = path.with_name(f"broken-{path.name}")
        tell(
            f"{path} cannot be read ({reason}): what that publication left is not cleared up, and "
            f"the file was renamed to {aside.name}"
        )
        path.replace(aside)


def recover(deployment: Deployment) -> None:
    """Finish or undo interrupted publications and delete abandoned files; call this with the lock
    held."""
    for journal in open_journals(deployment.repository):
        resolve(deployment, journal)
    sync_all(deployment.repository)
    for path in staging_folder(deployment.repository).iterdir():
        if path.name not in _KEPT and _is_abandoned(path):
            _delete(path)


def resolve(deployment: Deployment, journal: Journal) -> None:
    """Finish the publication if its pin is in place, else undo it."""
    candidate.clear(deployment, journal.pipeline)
    if active_version(deployment.repository, journal.pipeline) == journal.after:
        for model in journal.configs:
            sync_configs(deployment.repository, model)
        for replica in deployment.replicas:
            replica.control.load(journal.pipeline)
        deployment.list_needed(journal.members)
    else:
        _undo(deployment, journal)
    journal.close(deployment.repository)


def _undo(deployment: Deployment, journal: Journal) -> None:
    """Restore the configs, then unload the new versions on the servers, then delete them."""
    repository = deployment.repository
    for model, text in journal.configs.items():
        if text:
            place(repository, repository / model / CONFIG_FILE, text.encode())
    put_back(repository, journal.configs, journal.profiles)
    for replica in deployment.replicas:
        for model in journal.configs:
            _unload_new(repository, replica, journal, model)
        restore_readiness(repository, replica, journal)
    for model, version in journal.new:
        remove_folder(repository, repository / model / str(version))
    for model, text in journal.configs.items():
        if text is None and not version_folders(repository / model):
            remove_folder(repository, repository / model)
        elif text == "":
            (repository / model / CONFIG_FILE).unlink(missing_ok=True)


def _unload_new(repository: Path, replica: Replica, journal: Journal, model: str) -> None:
    """Unload the model's new versions; the whole model if it has no others."""
    new = {version for name, version in journal.new if name == model}
    if not replica.serves(model):
        return
    if set(version_folders(repository / model)) - new:
        replica.control.load(model)
    else:
        replica.drop(model)


def _is_abandoned(path: Path) -> bool:
    owned = _OWNED.match(path.name)
    if owned:
        return not Path(f"/proc/{owned[1]}").exists()
    return time.time() - path.stat().st_mtime > _STALE_S


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
