"""Every trial is recorded in ``trials.jsonl``, one per line, so that an interrupted search can be
resumed.

A line only counts in the context that it was measured in: the same files, configs, machine, load.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modelspec.machine import cpu_name, installed_versions, usable_cores
from serving.repository.manifest import content
from serving.repository.model_repository import ModelRepository
from serving.tuning.setting import setting_of
from serving.tuning.trial import Trial
from serving.tuning.trial_server import TrialServer

TOOLS = ("nvidia-pytriton", "onnxruntime", "tokenizers", "tidegate")
TRIALS_FILE = "trials.jsonl"


def machine() -> dict[str, Any]:
    """The cores that this process may use, and the CPU's name."""
    return {"cores": usable_cores(), "cpu": cpu_name()}


def engine_files(repository: ModelRepository, versions: Mapping[str, int]) -> str:
    """SHA-256 over all the files that these versions of models serve."""
    digests = {
        f"{model}/{path}": digest
        for model, number in sorted(versions.items())
        for path, digest in content(repository.version_folder(model, number)).items()
    }
    return _sha256(digests)


def context(
    trial_server: TrialServer,
    repository: ModelRepository,
    requests: Sequence[bytes],
    load: tuple[int, float],
) -> dict[str, Any]:
    """What a figure depends on besides the setting. ``load`` is the number of connections and the
    seconds of a pass: what was found in short passes, on a small budget, does not hold for long
    ones."""
    return {
        "pipeline": trial_server.name,
        "files": engine_files(repository, trial_server.versions),
        "default": setting_of(trial_server.configs).as_dict(),
        "machine": machine(),
        "tools": installed_versions(TOOLS),
        "connections": load[0],
        "pass_s": load[1],
        "samples": hashlib.sha256(b"".join(requests)).hexdigest(),
    }


class TrialLog:
    """The trials of one context in a folder; ``fresh`` deletes earlier ones."""

    def __init__(self, folder: Path, context: Mapping[str, Any], fresh: bool = False) -> None:
        self._path, self._context = folder / TRIALS_FILE, _sha256(context)
        folder.mkdir(parents=True, exist_ok=True)
        if fresh:
            self._path.unlink(missing_ok=True)

    def trials(self) -> list[Trial]:
        """The trials of this context, oldest first. A truncated line does not count."""
        if not self._path.is_file():
            return []
        lines = self._path.read_text(encoding="utf-8").splitlines()
        entries = [_parsed(line) for line in lines]
        return [
            Trial.from_dict(entry["trial"])
            for entry in entries
            if entry.get("context") == self._context
        ]

    def add(self, trial: Trial) -> None:
        line = json.dumps({"context": self._context, "trial": trial.as_dict()})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())


def _parsed(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
