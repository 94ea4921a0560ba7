"""Move a staged, proved pipeline into the repository.

Each version folder appears by one rename, so Triton never sees half of one; each config by another.
Members go first and the public model last: until then nothing points at what is new.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from modelspec.layout import CONFIG_FILE, atomic_write, version_folders
from serving.errors import PublishFailed


def publish(staged: Path, repository: Path, models: Sequence[str]) -> None:
    """Publish ``models`` (members first) from ``staged``, a folder on the same file system.

    A version that is there already is replaced. PublishFailed says what stood in the way.
    """
    repository.mkdir(parents=True, exist_ok=True)
    try:
        for model in models:
            _publish_model(staged / model, repository / model, staged)
    except OSError as error:
        raise PublishFailed(
            f"cannot publish into {repository}: {error}. Check the disk's space and rights, "
            "then run the same command again"
        ) from error


def is_published(repository: Path, model: str) -> bool:
    """Whether the model has a config and at least one version."""
    folder = repository / model
    return (folder / CONFIG_FILE).is_file() and bool(version_folders(folder))


def _publish_model(source: Path, target: Path, staged: Path) -> None:
    target.mkdir(exist_ok=True)
    for version in version_folders(source):
        final = target / str(version)
        _sync(source / str(version))
        if final.exists():
            final.rename(staged / f"replaced-{target.name}-{version}")
        (source / str(version)).rename(final)
    config = (source / CONFIG_FILE).read_bytes()
    if not _holds(target / CONFIG_FILE, config):
        atomic_write(target / CONFIG_FILE, config)
    _sync_folder(target)
    shutil.rmtree(source)


def _holds(path: Path, data: bytes) -> bool:
    return path.is_file() and path.read_bytes() == data


def _sync(folder: Path) -> None:
    """Bytes first, then the rename: a crash must not leave a version of empty files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
