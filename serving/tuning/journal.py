"""Every trial is kept, so that a search that was cut off goes on: ``trials.jsonl``, a line each.

A line counts only in the context that it was measured in: the same files, configs, machine, load.
"""

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from serving.plan import content
from serving.tuning.setting import setting_of
from serving.tuning.trial import Trial
from serving.tuning.trial_server import TrialServer

TOOLS = ("nvidia-pytriton", "onnxruntime", "tokenizers", "tidegate")
TRIALS_FILE = "trials.jsonl"


def machine() -> dict[str, Any]:
    """The cores that this process may use, and the CPU's name."""
    return {"cores": len(os.sched_getaffinity(0)), "cpu": _cpu_name()}


def tools() -> dict[str, str]:
    return {name: number for name in TOOLS if (number := _version(name))}


def engine_files(repository: Path, versions: Mapping[str, int]) -> str:
    """SHA-256 over all that these versions of models serve."""
    found = {
        f"{model}/{path}": digest
        for model, number in sorted(versions.items())
        for path, digest in content(repository / model / str(number)).items()
    }
    return _sha256(found)


def context(
    trial_server: TrialServer, repository: Path, requests: Sequence[bytes], load: tuple[int, float]
) -> dict[str, Any]:
    """What a figure depends on beside the setting. ``load`` is the connections and the seconds of
    a pass: what a short budget found in short passes is no answer for a long one."""
    return {
        "pipeline": trial_server.name,
        "files": engine_files(repository, trial_server.versions),
        "default": setting_of(trial_server.configs).as_dict(),
        "machine": machine(),
        "tools": tools(),
        "connections": load[0],
        "pass_s": load[1],
        "samples": hashlib.sha256(b"".join(requests)).hexdigest(),
    }


class TrialLog:
    """The trials of one context in a folder; ``fresh`` forgets those before."""

    def __init__(self, folder: Path, where: Mapping[str, Any], fresh: bool = False) -> None:
        self._path, self._context = folder / TRIALS_FILE, _sha256(where)
        folder.mkdir(parents=True, exist_ok=True)
        if fresh:
            self._path.unlink(missing_ok=True)

    def trials(self) -> list[Trial]:
        """Those of this context, oldest first. A line that was cut off is not counted."""
        if not self._path.is_file():
            return []
        lines = self._path.read_text(encoding="utf-8").splitlines()
        found = [_parsed(line) for line in lines]
        return [Trial.from_dict(f["trial"]) for f in found if f.get("context") == self._context]

    def add(self, trial: Trial) -> None:
        line = json.dumps({"context": self._context, "trial": trial.as_dict()})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())


def _parsed(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
