"""Publish a staged, proved pipeline beside the active version, and move the pin to it.

    publish(staged, repository, ["mood_pre", "mood_onnx", "mood"])

Works with Triton up (``deployment.replicas``) and down. Each version folder appears by one rename,
each config by another. The pipeline's config is the state: before it changes, everything can be
undone, and after that, finished (``recovery``). ``PublishPhase`` lists where a publication can be
interrupted.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from modelspec.files import sync_folder
from modelspec.layout import CONFIG_FILE, version_folders
from serving.errors import PublishFailed
from serving.publish.activation import activate
from serving.publish.deployment import Deployment
from serving.publish.journal import Journal, configs_now
from serving.publish.phases import PublishPhase
from serving.publish.plan import CONFIG_COPY, Plan, PlannedVersion, plan
from serving.publish.preflight import require_disk, require_memory
from serving.publish.recovery import recover
from serving.publish.replica import newest_of
from serving.repository import manifest
from serving.repository.config_profiles import (
    place_config,
    place_profile,
    profiles_now,
    synced_with,
)
from serving.repository.files import sync
from serving.repository.lock import publishing
from serving.repository.manifest import MANIFEST_FILE, Manifest
from serving.repository.model_repository import active_members, active_version, read_config
from serving.repository.pins import as_bytes, listed_versions, with_versions


def publish(
    staged: Path,
    repository: Path,
    models: Sequence[str],
    deployment: Deployment | None = None,
    origin: Manifest | None = None,
) -> int:
    """Publish ``models`` (members first, the pipeline last) from ``staged``, a folder on the same
    file system, and return the pipeline's active version.

    An unchanged model keeps its version, and if nothing has changed, nothing happens. ``origin`` is
    the manifest of a pipeline that was built elsewhere. Raises ServingError; the repository is then
    as it was before, unless the error is a RolloutStopped.
    """
    deployment = deployment or Deployment(repository)
    name = models[-1]
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with publishing(repository, f"publish {name}"):
            deployment.tell(PublishPhase.LOCKED, name)
            recover(deployment)
            return _publish(staged, models, deployment, origin)
    except OSError as error:
        raise PublishFailed(
            f"cannot publish into {repository}: {error}. Check disk space and permissions, then "
            "run the same command again"
        ) from error


def _publish(
    staged: Path, models: Sequence[str], deployment: Deployment, origin: Manifest | None
) -> int:
    repository = deployment.repository
    planned = plan(staged, repository, models, lambda model: newest_of(deployment.replicas, model))
    if not planned.new:
        _place_profiles(planned, repository)
        return planned.public.version
    _describe(planned, repository, origin)
    require_disk(repository, 0)
    pids = [replica.server_pid for replica in deployment.replicas if replica.server_pid]
    require_memory(planned.new, pids)
    deployment.tell(PublishPhase.CHECKED, planned.public.model)
    journal = _journal(planned, repository)
    journal.write(repository)
    deployment.tell(PublishPhase.JOURNALLED, planned.public.model)
    with activate(deployment, journal) as switch:
        _install(planned, deployment)
        switch(planned.public.config)
    return planned.public.version


def _describe(planned: Plan, repository: Path, origin: Manifest | None) -> None:
    """Complete the pipeline's staged version folder: its pinned config and its manifest."""
    public = planned.public
    if public.source is None:
        return
    (public.source / CONFIG_COPY).write_bytes(as_bytes(public.config))
    folders = {
        (part.model, part.version): part.source or repository / part.model / str(part.version)
        for part in (*planned.members, public)
    }
    record = manifest.start(public.model, public.version, folders)
    if origin:
        record = replace(record, git_commit=origin.git_commit, tools=origin.tools, note=origin.note)
    (public.source / MANIFEST_FILE).write_text(record.to_json(), encoding="utf-8")


def _journal(planned: Plan, repository: Path) -> Journal:
    name = planned.public.model
    before = active_version(repository, name)
    models = dict.fromkeys(member.model for member in planned.members)
    if before:
        models |= dict.fromkeys(active_members(repository, name))
    return Journal(
        pipeline=name,
        before=before,
        after=planned.public.version,
        new=tuple((version.model, version.version) for version in planned.new),
        configs=configs_now(repository, [*models, name]),
        profiles=profiles_now(repository, [*models, name]),
    )


def _install(planned: Plan, deployment: Deployment) -> None:
    """Install the new version folders, then the members' configs: until the pin moves, nothing
    points at them."""
    for version in planned.new:
        _pin_active(deployment.repository, version.model)
        _move_in(deployment.repository, version)
    deployment.tell(PublishPhase.INSTALLED, planned.public.model)
    for member in planned.members:
        versions = _versions_to_list(deployment.repository, member)
        place_config(deployment.repository, member.model, with_versions(member.config, versions))
    _place_profiles(planned, deployment.repository)
    deployment.tell(PublishPhase.LISTED, planned.public.model)


def _pin_active(repository: Path, model: str) -> None:
    """Pin the active version if the config leaves the choice to Triton, which would pick the
    newest."""
    active = active_version(repository, model)
    if active and not listed_versions(config := read_config(repository, model)):
        place_config(repository, model, with_versions(config, [active]))


def _move_in(repository: Path, version: PlannedVersion) -> None:
    if version.source is None:
        return
    folder = repository / version.model / str(version.version)
    folder.parent.mkdir(exist_ok=True)
    sync(version.source)
    version.source.rename(folder)
    sync_folder(folder.parent)


def _place_profiles(planned: Plan, repository: Path) -> None:
    """Place the staged config profiles, synced with the configs that are published now."""
    for part in (*planned.members, planned.public):
        has_config = (repository / part.model / CONFIG_FILE).is_file()
        main = read_config(repository, part.model) if has_config else part.config
        for name, profile in part.profiles.items():
            place_profile(repository, part.model, name, synced_with(main, profile))


def _versions_to_list(repository: Path, member: PlannedVersion) -> set[int]:
    """Every version of the member that is listed now and on disk, and the new one."""
    if not (repository / member.model / CONFIG_FILE).is_file():
        return {member.version}
    on_disk = version_folders(repository / member.model)
    listed = listed_versions(read_config(repository, member.model))
    return {version for version in listed if version in on_disk} | {member.version}
