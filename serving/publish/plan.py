"""Which model and version each staged folder becomes: files decide, and nothing is moved yet.

An unchanged member (same files) keeps its version; a changed one gets the next free number. If a
member's config has changed in *meaning*, it cannot share its model with the old version, which
Triton would then serve with the new config: it becomes a separate model, ``NAME_onnx.g2``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.names import generation_name
from serving.errors import PublishFailed
from serving.publish.deployment import Deployment
from serving.repository.configs import carried, meaning, repinned, with_versions
from serving.repository.manifest import content
from serving.repository.model_repository import ModelRepository


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
    """The plan for ``models`` (members first, the pipeline last), each with one version in
    ``staged``."""
    repository = deployment.repository
    folders = {}
    for name in models:
        if not staged.versions(name):
            raise PublishFailed(f"{staged.folder(name)} has no version folder: stage it again")
        folders[name] = staged.version_folder(name, staged.versions(name)[-1])
    *steps, name = models
    members = [_plan_member(staged, step, folders[step], deployment) for step in steps]
    positions = {
        step: (member.model, member.version) for step, member in zip(steps, members, strict=True)
    }
    config = with_versions(repinned(staged.config(name), positions), ())
    active = repository.active_version(name)
    is_unchanged = (
        active
        and with_versions(repository.config(name), ()) == config
        and content(repository.version_folder(name, active)) == content(folders[name])
    )
    version = active if is_unchanged else deployment.next_version(name)
    source = None if is_unchanged else folders[name]
    planned = PlannedVersion(name, version, config, source, staged.profiles(name))
    return Plan(tuple(members), planned)


def _plan_member(
    staged: ModelRepository, model: str, folder: Path, deployment: Deployment
) -> PlannedVersion:
    repository, config = deployment.repository, with_versions(staged.config(model), ())
    profiles = staged.profiles(model)
    # The first generation that means the same, or a new one.
    generations = repository.generations(model)
    name = generation_name(model, len(generations) + 1)
    for generation in generations:
        published = repository.config(generation)
        if meaning(published) == meaning(config):
            name, config = generation, carried(published, config)
            break
    config.name = name
    files = content(folder)
    for version in reversed(repository.versions(name)):
        if content(repository.version_folder(name, version)) == files:
            return PlannedVersion(name, version, config, None, profiles)
    version = deployment.next_version(name)
    return PlannedVersion(name, version, config, folder, profiles)
