"""Restore a server's own readiness after a load that failed.

Triton 2.51 remembers a version that failed to load, and answers /v2/health/ready with 400 from then
on, even when the version is gone from the config and from the disk. It forgets the failure once a
version with that number has been loaded and unloaded. So a stand-in is loaded under that number: a
copy of a served version's files or, for a model that has none, a model of a few lines.
"""

import shutil
from pathlib import Path

from modelspec.layout import CONFIG_FILE, STEP_FILE, version_folders
from modelspec.model import ModelSpec, TensorSpec
from modelspec.pbtxt import to_proto
from serving.publish.journal import Journal
from serving.publish.replica import Replica
from serving.repository.config_profiles import place_config, profiles_now, put_back, sync_configs
from serving.repository.files import owned_path, place, remove_folder
from serving.repository.model_repository import read_config
from serving.repository.pins import as_bytes, listed_versions, with_versions

STAND_IN = '''class TritonPythonModel:
    """Loaded briefly and unloaded again: see serving/publish/restore.py."""

    def execute(self, requests):
        raise RuntimeError("a stand-in answers nothing")
'''


def restore_readiness(repository: Path, replica: Replica, journal: Journal) -> None:
    """Make the server forget the versions of this publication that failed to load."""
    for model, version in replica.failed(list(journal.configs)):
        if (model, version) not in journal.new:
            continue
        remove_folder(repository, repository / model / str(version))
        text = journal.configs[model]
        listed = listed_versions(read_config(repository, model)) if text else []
        on_disk = version_folders(repository / model)
        served = [number for number in listed if number in on_disk]
        if served:
            _load_copy(repository, replica, model, (served[-1], version))
        else:
            _load_stand_in(repository, replica, model, version)


def _load_copy(repository: Path, replica: Replica, model: str, numbers: tuple[int, int]) -> None:
    """Briefly serve a copy of a served version's files under the failed number."""
    served, failed = numbers
    path = repository / model / CONFIG_FILE
    text, before = path.read_bytes(), read_config(repository, model)
    copy = owned_path(repository, "stand-in")
    shutil.copytree(repository / model / str(served), copy)
    copy.rename(repository / model / str(failed))
    place_config(repository, model, with_versions(before, [*listed_versions(before), failed]))
    replica.control.load(model)
    place(repository, path, text)
    sync_configs(repository, model)
    replica.control.load(model)
    remove_folder(repository, repository / model / str(failed))


def _load_stand_in(repository: Path, replica: Replica, model: str, version: int) -> None:
    """Put a model that loads in place of the failed one, load it, unload it, and restore."""
    path, staged = repository / model / CONFIG_FILE, owned_path(repository, "stand-in")
    before = path.read_bytes()
    staged.mkdir()
    (staged / STEP_FILE).write_text(STAND_IN)
    staged.rename(repository / model / str(version))
    tensors = (TensorSpec("x", "FP32", (1,)), TensorSpec("y", "FP32", (1,)))
    spec = ModelSpec(model, "python", 0, tensors[:1], tensors[1:], versions=(version,))
    profiles = profiles_now(repository, [model])
    put_back(repository, [model], {})
    place(repository, path, as_bytes(to_proto(spec)))
    replica.control.load(model)
    replica.control.unload(model)
    place(repository, path, before)
    put_back(repository, [model], profiles)
    remove_folder(repository, repository / model / str(version))
