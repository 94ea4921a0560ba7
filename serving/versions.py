"""The published versions of a pipeline: list them, go back to one, take old ones away."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.layout import version_folders
from modelspec.pbtxt import parse
from serving import manifest
from serving.activation import activate
from serving.config_profiles import place_config, profiles_now
from serving.deployment import Deployment
from serving.errors import PublishFailed, ServingError
from serving.files import remove_folder, size_bytes
from serving.journal import Journal, configs_now
from serving.lock import publishing
from serving.manifest import Manifest
from serving.pins import is_ensemble, listed_versions, pins, with_versions
from serving.plan import CONFIG_COPY
from serving.publish_phase import PublishPhase
from serving.recovery import recover
from serving.repository import (
    active_version,
    is_published,
    model_folders,
    needed,
    read_config,
    top_models,
)


@dataclass(frozen=True)
class Version:
    """One published version; ``manifest`` is None for one that was put there by hand."""

    number: int
    is_active: bool
    manifest: Manifest | None
    members: dict[str, int]


def versions(repository: Path, name: str) -> list[Version]:
    """The versions of the pipeline on disk, oldest first; ServingError if there is none."""
    require_published(repository, name)
    active = active_version(repository, name)
    return [
        Version(number, number == active, manifest.read(repository, name, number), members)
        for number in version_folders(repository / name)
        for members in [_members(config_of(repository, name, number))]
    ]


def require_published(repository: Path, name: str) -> None:
    if not is_published(repository, name):
        there = ", ".join(top_models(repository)) or "none"
        raise ServingError(f"there is no model {name!r} in {repository}: there are {there}")


def config_of(repository: Path, name: str, number: int) -> ModelConfig:
    """The config that a version was published with: its copy beside the manifest, or, for the
    active version of a pipeline put there by hand, the config itself."""
    copy = repository / name / str(number) / CONFIG_COPY
    if copy.is_file():
        return with_versions(parse(copy.read_text(encoding="utf-8")), ())
    config = read_config(repository, name)
    if number == active_version(repository, name) or not is_ensemble(config):
        return with_versions(config, ())
    raise PublishFailed(
        f"version {number} of {name} has no manifest, so nobody knows what it pinned: choose "
        f"another (tidegate versions {name})"
    )


def switch_to(deployment: Deployment, name: str, wanted: int | None) -> int:
    """Serve version ``wanted`` of the pipeline, or the newest before the active one; the version.

    Tampered names a file that is not what its manifest says. With ``wanted`` the active version,
    every server is brought to it.
    """
    repository = deployment.repository
    with publishing(repository, f"switch {name}"):
        deployment.tell(PublishPhase.LOCKED, name)
        recover(deployment)
        require_published(repository, name)
        number = wanted or _before(repository, name)
        config = checked_config(repository, name, number)
        deployment.tell(PublishPhase.CHECKED, name)
        members = _members(config)
        current = _members(config_of(repository, name, active_version(repository, name)))
        journal = Journal(
            pipeline=name,
            before=active_version(repository, name),
            after=number,
            new=(),
            configs=configs_now(repository, [*{**current, **members}, name]),
            profiles=profiles_now(repository, [*{**current, **members}, name]),
        )
        journal.write(repository)
        deployment.tell(PublishPhase.JOURNALLED, name)
        with activate(deployment, journal) as switch:
            list_beside(repository, pins(config))
            deployment.tell(PublishPhase.LISTED, name)
            switch(config)
    return number


def prune(deployment: Deployment, name: str, keep: int) -> tuple[list[str], int]:
    """Delete all but the ``keep`` newest versions, the active one, canaries and what a server
    serves still, with the members' versions that nothing needs any more: the folders that went, and
    their bytes."""
    repository = deployment.repository
    with publishing(repository, f"prune {name}"):
        recover(deployment)
        found = versions(repository, name)
        served = {number for replica in deployment.replicas for number in replica.served(name)}
        going = [
            each
            for each in found[: max(0, len(found) - keep)]
            if not each.is_active
            and each.number not in served
            and not is_published(repository, f"{name}.v{each.number}")
        ]
        called = set(top_models(repository))  # a model that clients call is nobody's to prune
        touched = {model for each in going for model in each.members} - called
        folders = [repository / name / str(each.number) for each in going]
        freed = sum(map(size_bytes, folders))
        for folder in folders:
            remove_folder(repository, folder)
        members = _unused(repository, touched)
        freed += sum(map(size_bytes, members))
        for folder in members:
            remove_folder(repository, folder)
        for model in touched:
            if not version_folders(repository / model):
                remove_folder(repository, repository / model)
    return [f"{each.parent.name}/{each.name}" for each in (*folders, *members)], freed


def _members(config: ModelConfig) -> dict[str, int]:
    return {model: max(numbers) for model, numbers in pins(config).items()}


def _before(repository: Path, name: str) -> int:
    active = active_version(repository, name)
    older = [each for each in version_folders(repository / name) if each < active]
    if not older:
        raise PublishFailed(
            f"{name} has no version before {active}, which serves now: see tidegate versions {name}"
        )
    return older[-1]


def checked_config(repository: Path, name: str, number: int) -> ModelConfig:
    """The version's config; Tampered or PublishFailed if it cannot be served as it was proved."""
    if number not in version_folders(repository / name):
        there = ", ".join(map(str, version_folders(repository / name)))
        raise PublishFailed(f"{name} has no version {number}: it has {there}")
    found = manifest.read(repository, name, number)
    if found:
        manifest.verify(repository, found)
    return config_of(repository, name, number)


def list_beside(repository: Path, wanted: Mapping[str, set[int]]) -> None:
    """Let each member list these versions beside those that it lists already."""
    for model, versions in wanted.items():
        config = read_config(repository, model)
        listed = set(listed_versions(config))
        if listed and not versions <= listed:
            place_config(repository, model, with_versions(config, listed | versions))


def _unused(repository: Path, models: set[str]) -> list[Path]:
    """The versions of the models that neither a config nor a manifest names."""
    used = needed(repository)
    for folder in model_folders(repository):
        for number in version_folders(folder):
            found = manifest.read(repository, folder.name, number)
            for model, version in (found.members if found else {}).items():
                used.setdefault(model, set()).add(version)
    return [
        repository / model / str(number)
        for model in sorted(models)
        for number in version_folders(repository / model)
        if number not in used.get(model, set())
    ]
