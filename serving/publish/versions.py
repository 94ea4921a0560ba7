"""The published versions of a pipeline: list them, switch to one, delete old ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.layout import version_folders
from modelspec.pbtxt import parse
from serving.errors import PublishFailed, ServingError
from serving.publish.activation import activate
from serving.publish.deployment import Deployment
from serving.publish.journal import Journal, configs_now
from serving.publish.phases import PublishPhase
from serving.publish.plan import CONFIG_COPY
from serving.publish.recovery import recover
from serving.repository import manifest
from serving.repository.config_profiles import place_config, profiles_now
from serving.repository.files import remove_folder, size_bytes
from serving.repository.lock import publishing
from serving.repository.manifest import Manifest
from serving.repository.model_repository import (
    active_version,
    is_published,
    model_folders,
    needed,
    read_config,
    top_models,
)
from serving.repository.pins import is_ensemble, listed_versions, pins, with_versions


@dataclass(frozen=True)
class Version:
    """One published version; ``manifest`` is None if it was put there by hand."""

    number: int
    is_active: bool
    manifest: Manifest | None
    members: dict[str, int]


def versions(repository: Path, name: str) -> list[Version]:
    """The pipeline's versions on disk, oldest first; ServingError if there are none."""
    require_published(repository, name)
    active = active_version(repository, name)
    return [
        Version(number, number == active, manifest.read(repository, name, number), members)
        for number in version_folders(repository / name)
        for members in [_members(config_of(repository, name, number))]
    ]


def require_published(repository: Path, name: str) -> None:
    if not is_published(repository, name):
        models = ", ".join(top_models(repository)) or "none"
        raise ServingError(f"there is no model {name!r} in {repository}: it has {models}")


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
        f"version {number} of {name} has no manifest, so what it pinned is unknown: choose another "
        f"(tidegate versions {name})"
    )


def switch_to(deployment: Deployment, name: str, version: int | None) -> int:
    """Switch the pipeline to ``version``, or, if it is None, to the newest before the active one;
    returns the version.

    Tampered names a file that differs from its manifest. If ``version`` is the active one already,
    every server is switched to it.
    """
    repository = deployment.repository
    with publishing(repository, f"switch {name}"):
        deployment.tell(PublishPhase.LOCKED, name)
        recover(deployment)
        require_published(repository, name)
        number = version or _previous(repository, name)
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
    """Delete all versions but the ``keep`` newest, the active one, canaries and those that a server
    still serves, and the members' versions that nothing needs any more. Returns the deleted
    folders, as MODEL/VERSION, and their bytes."""
    repository = deployment.repository
    with publishing(repository, f"prune {name}"):
        recover(deployment)
        published = versions(repository, name)
        served = {number for replica in deployment.replicas for number in replica.served(name)}
        obsolete = [
            version
            for version in published[: max(0, len(published) - keep)]
            if not version.is_active
            and version.number not in served
            and not is_published(repository, f"{name}.v{version.number}")
        ]
        # A model that clients call is never pruned as a member.
        public = set(top_models(repository))
        touched = {model for version in obsolete for model in version.members} - public
        folders = [repository / name / str(version.number) for version in obsolete]
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
    return [f"{folder.parent.name}/{folder.name}" for folder in (*folders, *members)], freed


def _members(config: ModelConfig) -> dict[str, int]:
    return {model: max(numbers) for model, numbers in pins(config).items()}


def _previous(repository: Path, name: str) -> int:
    active = active_version(repository, name)
    older = [number for number in version_folders(repository / name) if number < active]
    if not older:
        raise PublishFailed(
            f"{name} has no version before {active}, the active one: see tidegate versions {name}"
        )
    return older[-1]


def checked_config(repository: Path, name: str, number: int) -> ModelConfig:
    """The version's config; Tampered or PublishFailed if it cannot be served as it was proved."""
    if number not in version_folders(repository / name):
        numbers = ", ".join(map(str, version_folders(repository / name)))
        raise PublishFailed(f"{name} has no version {number}: it has {numbers}")
    record = manifest.read(repository, name, number)
    if record:
        manifest.verify(repository, record)
    return config_of(repository, name, number)


def list_beside(repository: Path, additions: Mapping[str, set[int]]) -> None:
    """Make each member list these versions beside those that it lists already."""
    for model, versions in additions.items():
        config = read_config(repository, model)
        listed = set(listed_versions(config))
        if listed and not versions <= listed:
            place_config(repository, model, with_versions(config, listed | versions))


def _unused(repository: Path, models: set[str]) -> list[Path]:
    """The version folders of the models that neither a config nor a manifest refers to."""
    used = needed(repository)
    for folder in model_folders(repository):
        for number in version_folders(folder):
            record = manifest.read(repository, folder.name, number)
            for model, version in (record.members if record else {}).items():
                used.setdefault(model, set()).add(version)
    return [
        repository / model / str(number)
        for model in sorted(models)
        for number in version_folders(repository / model)
        if number not in used.get(model, set())
    ]
