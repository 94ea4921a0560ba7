"""Which model and version each staged folder becomes: files decide, and nothing is moved yet.

An unchanged member (same files) keeps its version; a changed one gets the next free number. If a
member's config has changed in *meaning*, it cannot share its model with the old version, which
Triton would then serve with the new config: it becomes a separate model, ``NAME_onnx.g2``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from serving.errors import PublishFailed
from serving.publish.deployment import Deployment
from serving.repository.manifest import content
from serving.repository.model_repository import ModelRepository
from serving.repository.pins import meaning, repinned, with_versions
from serving.repository.tuned import carried


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
    """Members first; ``pipeline`` is the public model itself, its steps pinned to the members."""

    members: tuple[PlannedVersion, ...]
    pipeline: PlannedVersion

    @property
    def all(self) -> tuple[PlannedVersion, ...]:
        return (*self.members, self.pipeline)

    @property
    def new(self) -> tuple[PlannedVersion, ...]:
        return tuple(planned for planned in self.all if planned.source)


def make_plan(staged: ModelRepository, models: Sequence[str], deployment: Deployment) -> Plan:
    """The plan for ``models`` (members first, the pipeline last) in ``staged``."""
    repository, name = deployment.repository, models[-1]
    pinned = staged.pinned_members(name)
    members = []
    for model in models[:-1]:
        source = _staged_version(staged, model, pinned.get(model, 0))
        members.append(_plan_member(staged, model, source, deployment))
    positions = {
        model: (member.model, member.version)
        for model, member in zip(models[:-1], members, strict=True)
    }
    config = with_versions(repinned(staged.config(name), positions), ())
    source = _staged_version(staged, name, staged.active_version(name))
    active, profiles = repository.active_version(name), staged.profiles(name)
    is_unchanged = (
        active
        and with_versions(repository.config(name), ()) == config
        and content(repository.version_folder(name, active)) == content(source)
    )
    if is_unchanged:
        pipeline = PlannedVersion(name, active, config, None, profiles)
    else:
        version = deployment.next_version(name)
        pipeline = PlannedVersion(name, version, config, source, profiles)
    return Plan(tuple(members), pipeline)


def _plan_member(
    staged: ModelRepository, model: str, source: Path, deployment: Deployment
) -> PlannedVersion:
    repository, config = deployment.repository, staged.config(model)
    # The first of NAME, NAME.g2, NAME.g3 ... that is free or means the same.
    generation, name = 1, model
    while repository.is_published(name) and meaning(repository.config(name)) != meaning(config):
        generation += 1
        name = f"{model}.g{generation}"
    config.name = name
    config.ClearField("version_policy")
    if repository.is_published(name):
        config = carried(repository.config(name), config)
    files, profiles = content(source), staged.profiles(model)
    for version in reversed(repository.versions(name)):
        if content(repository.version_folder(name, version)) == files:
            return PlannedVersion(name, version, config, None, profiles)
    return PlannedVersion(name, deployment.next_version(name), config, source, profiles)


def _staged_version(staged: ModelRepository, model: str, version: int) -> Path:
    versions = staged.versions(model)
    if not versions:
        raise PublishFailed(f"{staged.folder(model)} has no version folder: stage it again")
    return staged.version_folder(model, version if version in versions else versions[-1])
