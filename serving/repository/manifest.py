"""The manifest of one published pipeline version: what it is made of, and where that came from.

It is in the pipeline's own version folder, ``NAME/7/manifest.json``, beside the config that pins
version 7's members. That folder appears by one rename like any other, and nothing is ever added to
it, so Triton sees no change for which it would reload a model.
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from modelspec.files import file_hashes
from modelspec.machine import git_commit, installed_versions
from serving.errors import PublishFailed

MANIFEST_FILE = "manifest.json"
PROOF_FILE = "proof.json"
CONFIG_COPY = "config.pbtxt"  # beside the manifest: the config that pins this version's members
CACHE_FOLDER = "__pycache__"  # another Python version may add its own files there
# The files in a version folder that are not served.
_BESIDE = frozenset({MANIFEST_FILE, PROOF_FILE, "proof.md", ".gitkeep", CONFIG_COPY})


@dataclass(frozen=True)
class Manifest:
    """``members`` maps each model to its version; ``files`` maps "MODEL/VERSION/FILE" to its
    SHA-256; ``proof`` is the summary of each engine's proof, by model."""

    pipeline: str
    version: int
    made_at: str
    members: Mapping[str, int]
    files: Mapping[str, str]
    proof: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    git_commit: str = ""
    note: str = ""

    @classmethod
    def of_folders(
        cls, pipeline: str, number: int, folders: Mapping[tuple[str, int], Path]
    ) -> Self:
        """The manifest of the files in ``folders``: (model, version) -> version folder, the
        pipeline's own among them."""
        files = {
            f"{model}/{model_version}/{path}": digest
            for (model, model_version), folder in folders.items()
            for path, digest in file_hashes(folder).items()
            if path != MANIFEST_FILE
        }
        members = {model: model_version for model, model_version in folders if model != pipeline}
        proofs = {model: _proof(folder) for (model, _), folder in folders.items()}
        proof = {model: summary for model, summary in proofs.items() if summary}
        tools: dict[str, str] = {}
        for summary in proof.values():
            tools |= summary.pop("tools")
        return cls(
            pipeline=pipeline,
            version=number,
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            members=members,
            files=files,
            proof=proof,
            tools={
                **tools,
                "python": platform.python_version(),
                **installed_versions(("tidegate", "nvidia-pytriton")),
            },
            git_commit=git_commit(Path(__file__).parent),  # of this code
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, sort_keys=True) + "\n"

    def summary(self) -> str:
        """The proof in one line, for people."""
        if not self.proof:
            return self.note or "nothing was converted"
        verdicts = [
            f"{model}: {proof['checks']} checks, "
            + ("passed" if proof["passed"] else f"FAILED, accepted: {proof['accepted']}")
            for model, proof in self.proof.items()
        ]
        return "; ".join(verdicts)


def content(folder: Path) -> dict[str, str]:
    """The hashes of the files that a version folder serves, and its proof in short: two versions
    with equal content are the same one."""
    digests = {
        path: digest
        for path, digest in file_hashes(folder).items()
        if path not in _BESIDE and CACHE_FOLDER not in path
    }
    proof_in_short = ""
    if (folder / PROOF_FILE).is_file():
        proof = json.loads((folder / PROOF_FILE).read_text(encoding="utf-8"))
        # What must be equal for two engines to count as proved the same way.
        keys = ("passed", "accepted", "precision", "source_sha256", "engine_sha256")
        proof_in_short = json.dumps([proof.get(key) for key in keys])
    return {**digests, PROOF_FILE: proof_in_short}


def _proof(folder: Path) -> dict[str, Any]:
    """The summary of the proof beside an engine; {} if there is none."""
    try:
        proof = json.loads((folder / PROOF_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise PublishFailed(f"{folder / PROOF_FILE} cannot be read: {error}") from error
    keys = ("passed", "source", "source_sha256", "engine_sha256", "precision", "accepted", "task")
    checks = sum(len(part.get("checks", [])) for part in proof.get("proofs", []))
    summary = {key: proof.get(key, "") for key in keys}
    return {**summary, "checks": checks, "tools": dict(proof.get("tools", {}))}
