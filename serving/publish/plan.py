"""Which model and version each staged folder becomes: files decide, and nothing is moved yet.

An unchanged member (same files) keeps its version; a changed one gets the next free number. If a
member's config has changed in *meaning*, it cannot share its model with the old version, which
Triton would then serve with the new config: it becomes a separate model, ``NAME_onnx.g2``.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.layout import version_folders
from serving.errors import PublishFailed
from serving.repository.config_profiles import read_profiles
from serving.repository.files import hashes
from serving.repository.manifest import CACHE_FOLDER, MANIFEST_FILE, PROOF_FILE
from serving.repository.model_repository import active_version, is_published, read_config
from serving.repository.pins import meaning, pins, repinned, with_versions
from serving.repository.tuned import carried

CONFIG_COPY = "config.pbtxt"
# The files in a version folder that are not served.
_BESIDE = frozenset({MANIFEST_FILE, PROOF_FILE, "proof.md", ".gitkeep", CONFIG_COPY})
NewestTaken = Callable[[str], int]


@dataclass(frozen=True)
class PlannedVersion:
    """One version folder of a plan. ``source`` is its staged folder, None if it is published
    already; ``config`` is the model's config without a version policy, and ``profiles`` are the
    config profiles staged beside it."""

    model: str
    version: int
    config: ModelConfig
    source: Path | None
    profiles: Mapping[str, ModelConfig] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Members first; ``public`` is the pipeline itself, its steps pinned to the members."""

    members: tuple[PlannedVersion, ...]
    public: PlannedVersion

    @property
    def new(self) -> tuple[PlannedVersion, ...]:
        return tuple(version for version in (*self.members, self.public) if version.source)


def plan(staged: Path, repository: Path, models: Sequence[str], taken: NewestTaken) -> Plan:
    """The plan for ``models`` (members first, the pipeline last) in ``staged``.

    ``taken(model)`` is the highest version that a running server remembers: a number is never used
    twice while a server may still have the old one.
    """
    name = models[-1]
    config = read_config(staged, name)
    pinned = {model: max(versions) for model, versions in pins(config).items()}
    members = []
    positions = {}
    for model in models[:-1]:
        source = _staged_version(staged, model, pinned.get(model))
        members.append(_plan_member(source, read_config(staged, model), repository, taken))
        positions[model] = (members[-1].model, members[-1].version)
    config = with_versions(repinned(config, positions), ())
    source = _staged_version(staged, name, active_version(staged, name))
    return Plan(tuple(members), _plan_public(source, config, repository, taken))


def content(folder: Path) -> dict[str, str]:
    """The hashes of the files that a version folder serves, and its proof in short."""
    digests = {
        path: digest
        for path, digest in hashes(folder).items()
        if path not in _BESIDE and CACHE_FOLDER not in path
    }
    return {**digests, PROOF_FILE: _proof_in_short(folder / PROOF_FILE)}


def next_version(repository: Path, model: str, taken: NewestTaken) -> int:
    return max([*version_folders(repository / model), taken(model)], default=0) + 1


def _staged_version(staged: Path, model: str, version: int | None) -> Path:
    folders = version_folders(staged / model)
    if not folders:
        raise PublishFailed(f"{staged / model} has no version folder: stage it again")
    return staged / model / str(version if version in folders else folders[-1])


def _plan_member(
    source: Path, config: ModelConfig, repository: Path, taken: NewestTaken
) -> PlannedVersion:
    name = _target_model(config, source.parent.name, repository)
    planned_config = ModelConfig()
    planned_config.CopyFrom(config)
    planned_config.name = name
    planned_config.ClearField("version_policy")
    if is_published(repository, name):
        planned_config = carried(read_config(repository, name), planned_config)
    staged, profiles = content(source), read_profiles(source.parent)
    for version in reversed(version_folders(repository / name)):
        if content(repository / name / str(version)) == staged:
            return PlannedVersion(name, version, planned_config, None, profiles)
    return PlannedVersion(
        name, next_version(repository, name, taken), planned_config, source, profiles
    )


def _target_model(config: ModelConfig, name: str, repository: Path) -> str:
    """The first of NAME, NAME.g2, NAME.g3 ... that is free or means the same."""
    generation, target = 1, name
    while is_published(repository, target):
        if meaning(read_config(repository, target)) == meaning(config):
            return target
        generation += 1
        target = f"{name}.g{generation}"
    return target


def _plan_public(
    source: Path, config: ModelConfig, repository: Path, taken: NewestTaken
) -> PlannedVersion:
    """The pipeline: published already if the active version has the same pins, config and files."""
    name = source.parent.name
    active, profiles = active_version(repository, name), read_profiles(source.parent)
    if active:
        current = with_versions(read_config(repository, name), ())
        if current == config and content(repository / name / str(active)) == content(source):
            return PlannedVersion(name, active, config, None, profiles)
    return PlannedVersion(name, next_version(repository, name, taken), config, source, profiles)


def _proof_in_short(path: Path) -> str:
    """What must be equal for two engines to count as proved the same way; '' without a proof."""
    if not path.is_file():
        return ""
    proof = json.loads(path.read_text(encoding="utf-8"))
    keys = ("passed", "accepted", "precision", "source_sha256", "engine_sha256")
    return json.dumps([proof.get(key) for key in keys])
