"""Make a server's own readiness right again after a load that failed.

Triton 2.51 remembers a version that failed to load, and answers /v2/health/ready with 400 for as
long, even when the version is gone from the config and from the disk. It forgets when a version of
that number has loaded after all and was unloaded. So a stand-in is loaded under the number: the
files of a version that serves, or, for a model that has none, a model of a few lines.
"""

import shutil
from pathlib import Path

from modelspec.layout import CONFIG_FILE, STEP_FILE, version_folders
from modelspec.model import ModelSpec, TensorSpec
from modelspec.pbtxt import to_proto
from serving.config_profiles import place_config, profiles_now, put_back, sync_configs
from serving.files import owned_path, place, remove_folder
from serving.journal import Journal
from serving.pins import as_bytes, listed_versions, with_versions
from serving.replica import Replica
from serving.repository import read_config

STAND_IN = '''class TritonPythonModel:
    """Loaded for a moment and unloaded: see serving/restore.py."""

    def execute(self, requests):
        raise RuntimeError("a stand-in answers nothing")
'''


def restore_readiness(repository: Path, replica: Replica, journal: Journal) -> None:
    """Let the server forget the versions of this publication that failed to load on it."""
    for model, version in replica.failed(list(journal.configs)):
        if (model, version) not in journal.new:
            continue
        remove_folder(repository, repository / model / str(version))
        text = journal.configs[model]
        served = listed_versions(read_config(repository, model)) if text else []
        beside = [each for each in served if each in version_folders(repository / model)]
        if beside:
            _lend(repository, replica, model, (beside[-1], version))
        else:
            _stand_in(repository, replica, model, version)


def _lend(repository: Path, replica: Replica, model: str, numbers: tuple[int, int]) -> None:
    """Serve a serving version's files under the failed number too, for a moment."""
    served, failed = numbers
    path = repository / model / CONFIG_FILE
    text, before = path.read_bytes(), read_config(repository, model)
    lent = owned_path(repository, "stand-in")
    shutil.copytree(repository / model / str(served), lent)
    lent.rename(repository / model / str(failed))
    place_config(repository, model, with_versions(before, [*listed_versions(before), failed]))
    replica.control.load(model)
    place(repository, path, text)
    sync_configs(repository, model)
    replica.control.load(model)
    remove_folder(repository, repository / model / str(failed))


def _stand_in(repository: Path, replica: Replica, model: str, version: int) -> None:
    """Put a model that loads where the failed one was, load it, unload it, put back."""
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
