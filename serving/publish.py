"""Publish a staged, proved pipeline beside the version that serves, and move the pin to it.

    publish(staged, repository, ["mood_pre", "mood_onnx", "mood"])

Works with Triton up (``deployment.replicas``) and down. Each version folder appears by one rename,
each
config by another. The pipeline's config is the state: before it changes, everything can be undone,
and after, finished (``recovery``). ``steps`` lists where it can be cut off.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from modelspec.layout import CONFIG_FILE, version_folders
from serving import manifest
from serving.activation import activate
from serving.config_profiles import place_config, place_profile, profiles_now, synced_with
from serving.deployment import Deployment
from serving.errors import PublishFailed
from serving.files import sync, sync_folder
from serving.journal import Journal, configs_now
from serving.lock import publishing
from serving.manifest import MANIFEST_FILE, Manifest
from serving.pins import as_bytes, listed_versions, with_versions
from serving.plan import CONFIG_COPY, Plan, PlannedVersion, plan
from serving.preflight import require_disk, require_memory
from serving.publish_phase import PublishPhase
from serving.recovery import recover
from serving.replica import newest_of
from serving.repository import active_members, active_version, read_config


def publish(
    staged: Path,
    repository: Path,
    models: Sequence[str],
    deployment: Deployment | None = None,
    origin: Manifest | None = None,
) -> int:
    """Publish ``models`` (members first, the pipeline last) from ``staged``, a folder on the same
    file system; the pipeline's version that serves now.

    What is unchanged keeps its version, and nothing happens when all is. ``origin`` is the manifest
    of a pipeline that was made elsewhere. Raises ServingError: the repository is as it was, unless
    the error is a RolloutStopped.
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
            f"cannot publish into {repository}: {error}. Check the disk's space and rights, "
            "then run the same command again"
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
        (each.model, each.version): each.source or repository / each.model / str(each.version)
        for each in (*planned.members, public)
    }
    made = manifest.start(public.model, public.version, folders)
    if origin:
        made = replace(made, git_commit=origin.git_commit, tools=origin.tools, note=origin.note)
    (public.source / MANIFEST_FILE).write_text(made.to_json(), encoding="utf-8")


def _journal(planned: Plan, repository: Path) -> Journal:
    name = planned.public.model
    before = active_version(repository, name)
    models = {each.model: None for each in planned.members}
    if before:
        models |= dict.fromkeys(active_members(repository, name))
    return Journal(
        pipeline=name,
        before=before,
        after=planned.public.version,
        new=tuple((each.model, each.version) for each in planned.new),
        configs=configs_now(repository, [*models, name]),
        profiles=profiles_now(repository, [*models, name]),
    )


def _install(planned: Plan, deployment: Deployment) -> None:
    """The new version folders, then the members' configs: until the pin moves nothing points at
    them."""
    for each in planned.new:
        _hold(deployment.repository, each.model)
        _appear(deployment.repository, each)
    deployment.tell(PublishPhase.INSTALLED, planned.public.model)
    for each in planned.members:
        listed = _listed(deployment.repository, each)
        place_config(deployment.repository, each.model, with_versions(each.config, listed))
    _place_profiles(planned, deployment.repository)
    deployment.tell(PublishPhase.LISTED, planned.public.model)


def _hold(repository: Path, model: str) -> None:
    """Pin what serves now where the config left it to Triton, which would choose the newest."""
    active = active_version(repository, model)
    if active and not listed_versions(config := read_config(repository, model)):
        place_config(repository, model, with_versions(config, [active]))


def _appear(repository: Path, each: PlannedVersion) -> None:
    if each.source is None:
        return
    final = repository / each.model / str(each.version)
    final.parent.mkdir(exist_ok=True)
    sync(each.source)
    each.source.rename(final)
    sync_folder(final.parent)


def _place_profiles(planned: Plan, repository: Path) -> None:
    """The configs that were staged beside the main ones, in step with what is published now."""
    for each in (*planned.members, planned.public):
        is_there = (repository / each.model / CONFIG_FILE).is_file()
        main = read_config(repository, each.model) if is_there else each.config
        for name, profile in each.profiles.items():
            place_profile(repository, each.model, name, synced_with(main, profile))


def _listed(repository: Path, each: PlannedVersion) -> set[int]:
    """Every version of the member that serves now, and the new one."""
    if not (repository / each.model / CONFIG_FILE).is_file():
        return {each.version}
    there = version_folders(repository / each.model)
    now = listed_versions(read_config(repository, each.model))
    return {version for version in now if version in there} | {each.version}
