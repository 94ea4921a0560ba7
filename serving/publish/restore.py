"""Restore a server's own readiness after a load that failed.

Triton 2.51 remembers a version that failed to load, and answers /v2/health/ready with 400 from then
on, even when the version is gone from the config and from the disk. It forgets the failure once a
version with that number has been loaded and unloaded. So a stand-in is loaded under that number: a
copy of a served version's files or, for a model that has none, a model of a few lines.
"""

import shutil

from modelspec.layout import CONFIG_FILE, STEP_FILE
from modelspec.model import ModelSpec, TensorSpec
from modelspec.pbtxt import render, to_proto
from serving.publish.journal import Journal
from serving.publish.replica import Replica
from serving.repository.configs import policy_versions
from serving.repository.model_repository import ModelRepository

PLACEHOLDER_STEP = '''class TritonPythonModel:
    """Loaded briefly and unloaded again: see serving/publish/restore.py."""

    def execute(self, requests):
        raise RuntimeError("a placeholder answers nothing")
'''


def restore_readiness(repository: ModelRepository, replica: Replica, journal: Journal) -> None:
    """Make the server forget the versions of this publication that failed to load."""
    for model, version in replica.failed(list(journal.configs)):
        if (model, version) not in journal.new:
            continue
        repository.remove_version(model, version)
        in_policy = policy_versions(repository.config(model)) if journal.configs[model] else []
        served = [number for number in in_policy if number in repository.versions(model)]
        if served:
            _load_copy(repository, replica, model, served[-1], version)
        else:
            _load_placeholder(repository, replica, model, version)


def _load_copy(
    repository: ModelRepository, replica: Replica, model: str, served: int, failed: int
) -> None:
    """Briefly serve a copy of a served version's files under the failed number."""
    path = repository.folder(model) / CONFIG_FILE
    text, before = path.read_bytes(), repository.config(model)
    copy = repository.staged_path("placeholder")
    shutil.copytree(repository.version_folder(model, served), copy)
    copy.rename(repository.version_folder(model, failed))
    repository.write_config(model, before, [*policy_versions(before), failed])
    replica.control.load(model)
    repository.write(path, text)
    repository.sync_profiles(model)
    replica.control.load(model)
    repository.remove_version(model, failed)


def _load_placeholder(
    repository: ModelRepository, replica: Replica, model: str, version: int
) -> None:
    """Put a model that loads in place of the failed one, load it, unload it, and restore."""
    path, staged = repository.folder(model) / CONFIG_FILE, repository.staged_path("placeholder")
    before = path.read_bytes()
    staged.mkdir()
    (staged / STEP_FILE).write_text(PLACEHOLDER_STEP)
    staged.rename(repository.version_folder(model, version))
    tensors = (TensorSpec("x", "FP32", (1,)), TensorSpec("y", "FP32", (1,)))
    spec = ModelSpec(model, "python", 0, tensors[:1], tensors[1:], versions=(version,))
    profiles = repository.profile_texts([model])
    repository.restore_profiles([model], {})
    repository.write(path, render(to_proto(spec)).encode())
    replica.control.load(model)
    replica.control.unload(model)
    repository.write(path, before)
    repository.restore_profiles([model], profiles)
    repository.remove_version(model, version)
