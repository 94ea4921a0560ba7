"""Pipelines that are composed of others: proved beside their members through a scratch Triton, and
published like any other."""

import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from modelspec.declaration import Declaration
from modelspec.held import held_folder
from modelspec.layout import CONFIG_FILE, CONFIGS, STEP_FILE
from modelspec.pbtxt import render
from modelspec.staging import stage_model
from serving.errors import PublishFailed
from serving.repository.configs import with_versions
from serving.repository.model_repository import ModelRepository
from tidegate.app.compose_classifiers import RoutedClassifiers
from tidegate.app.compose_service import AskedPipelines
from tidegate.app.composed import Composition
from tidegate.app.paths import Paths
from tidegate.app.pipelines import has_step, publish_staged, step_file
from tidegate.app.progress import Progress
from tidegate.app.scratch import scratch_triton
from tidegate.app.train import RECIPES
from tidegate.app.train import run as train

_COMPOSITIONS: tuple[Composition, ...] = (RoutedClassifiers(), AskedPipelines())
COMPOSED: Mapping[str, Composition] = MappingProxyType(
    {composition.name: composition for composition in _COMPOSITIONS}
)


@dataclass(frozen=True)
class ComposeResult:
    name: str
    version: int
    members: Mapping[str, int]  # the versions of the pipelines that it is composed of

    def lines(self) -> list[str]:
        members = ", ".join(f"{name} version {number}" for name, number in self.members.items())
        return [f"{self.name}: version {self.version} is composed of {members}"]

    def as_dict(self) -> dict[str, object]:
        """The result in plain JSON types."""
        return {"pipeline": self.name, "version": self.version, "members": dict(self.members)}


def run(name: str, paths: Paths, report: Progress) -> ComposeResult:
    """Compose the pipeline of its members as they are published now, training those that are not;
    prove and publish it. PublishFailed if a member is missing, or if it does not answer as its
    members do."""
    composition, repository = COMPOSED[name], ModelRepository(paths.repository)
    for member in composition.members:
        if repository.is_published(member):
            continue
        if member not in RECIPES:
            raise PublishFailed(
                f"{name} is composed of {member}, which is not published: `tidegate up {name}` "
                "makes everything that it needs"
            )
        train(member, 0, paths, report)
    versions = {member: repository.active_version(member) for member in composition.members}
    pipeline = composition.declare(repository)
    theirs = _steps(composition, repository)
    own = [spec.name for spec in pipeline.models]
    repository.staging.mkdir(parents=True, exist_ok=True)
    with held_folder(repository.staging, name) as folder:
        staged = ModelRepository(folder)
        for spec in pipeline.models:
            stage_model(staged.path, spec, {STEP_FILE: step_file(spec.step)} if spec.step else {})
        members = {model: {version} for model, version in versions.items()}
        for model, pinned in {**theirs, **members}.items():
            _stage_published(model, pinned, repository, staged)
        report(f"{name}: comparing it with its members through a scratch Triton")
        _prove(composition, staged, repository, paths.state)
        models = [*theirs, *own] if composition.has_their_steps else own
        version = publish_staged(staged, models, repository, paths.state, report)
    return ComposeResult(name, version, versions)


def is_current(name: str, repository: ModelRepository) -> bool:
    """Whether it is published with the current steps and fields and, if it has its members' steps,
    with those that they have now."""
    composition = COMPOSED[name]
    if not all(map(repository.is_published, (name, *composition.members))):
        return False
    pinned = repository.pinned_members(name)
    if composition.has_their_steps:
        theirs = _steps(composition, repository)
        if any(pinned.get(model) not in versions for model, versions in theirs.items()):
            return False
    pipeline = composition.declare(repository)
    declared = pipeline.public.endpoint_schema
    published = Declaration.of(repository.config(name)).endpoint
    if declared is None or published is None:
        return False
    if (declared.request, declared.response) != (published.request, published.response):
        return False
    return all(has_step(repository, spec) for spec in pipeline.members)


def made_first(name: str) -> Iterator[str]:
    """The pipelines that must be published before this one can be, in order."""
    for member in COMPOSED[name].members if name in COMPOSED else ():
        yield from made_first(member)
        yield member


def served_along(name: str) -> list[str]:
    """The pipelines that this one asks."""
    composition = COMPOSED.get(name)
    return [] if composition is None or composition.has_their_steps else [*composition.members]


def _steps(composition: Composition, repository: ModelRepository) -> dict[str, set[int]]:
    """The members' own steps and engines -> the versions of them that are pinned now."""
    steps: dict[str, set[int]] = defaultdict(set)
    for member in composition.members:
        for model, version in repository.pinned_members(member).items():
            steps[model].add(version)
    return steps


def _stage_published(
    model: str, versions: set[int], repository: ModelRepository, staged: ModelRepository
) -> None:
    """These versions of a published model, without a copy of their files, which never change."""
    for version in versions:
        shutil.copytree(
            repository.version_folder(model, version),
            staged.version_folder(model, version),
            copy_function=os.link,
        )
    if (repository.folder(model) / CONFIGS).is_dir():
        shutil.copytree(repository.folder(model) / CONFIGS, staged.folder(model) / CONFIGS)
    config = with_versions(repository.config(model), sorted(versions))
    (staged.folder(model) / CONFIG_FILE).write_text(render(config), encoding="utf-8")


def _prove(
    composition: Composition, staged: ModelRepository, repository: ModelRepository, work_dir: Path
) -> None:
    from tritonclient.grpc import InferenceServerClient

    with (
        scratch_triton(staged, work_dir, *composition.members, composition.name) as address,
        InferenceServerClient(address) as client,
    ):
        composition.prove(client, repository)
