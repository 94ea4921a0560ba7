"""Switch a pipeline to another of its published versions, and delete old ones."""

from collections.abc import Sequence

from modelspec.files import size_bytes
from serving.errors import PublishFailed
from serving.publish.activation import activate, undone_on_failure
from serving.publish.deployment import Deployment
from serving.publish.journal import Journal
from serving.publish.phases import PublishPhase
from serving.publish.recovery import recover
from serving.repository.configs import newest_pins, pins


def switch_to(deployment: Deployment, name: str, version: int | None) -> int:
    """Switch the pipeline to ``version``, or, if it is None, to the newest before the active one;
    returns the version.

    Tampered names a file that differs from its manifest. If ``version`` is the active one already,
    every server is switched to it.
    """
    repository = deployment.repository
    with repository.lock(f"switch {name}"):
        deployment.report(PublishPhase.LOCKED, name)
        recover(deployment)
        repository.require_published(name)
        active = repository.active_version(name)
        if not version:
            older = [number for number in repository.versions(name) if number < active]
            if not older:
                newer = [number for number in repository.versions(name) if number > active]
                later = f"tidegate rollback {name} --to {newer[0]}" if newer else ""
                raise PublishFailed(
                    f"{name} has no version before {active}, the active one: "
                    + (f"a later one is {later}" if later else f"see tidegate versions {name}")
                )
            version = older[-1]
        config = repository.verified_config(name, version)
        deployment.report(PublishPhase.CHECKED, name)
        journal = Journal.begin(repository, name, version, members=newest_pins(config))
        deployment.report(PublishPhase.JOURNALLED, name)
        with undone_on_failure(deployment, journal):
            repository.list_also(pins(config))
            deployment.report(PublishPhase.POLICIES_WIDENED, name)
            activate(deployment, journal, config)
    return version


def prune(deployment: Deployment, name: str, keep: int) -> tuple[list[str], int]:
    """Delete all versions but the ``keep`` newest, the active one, canaries and those that a server
    still serves, and the members' versions that nothing needs any more. Returns the deleted
    folders, as MODEL/VERSION, and their bytes. If it is killed, the next one goes on."""
    repository = deployment.repository
    with repository.lock(f"prune {name}"):
        recover(deployment)
        published = repository.published_versions(name)
        older = published[: max(0, len(published) - keep)]
        needed = _needed(deployment, name, [version.number for version in older])
        obsolete = [version for version in older if version.number not in needed]
        # A model that clients call is never pruned as a member.
        public = set(repository.public_models())
        touched = {model for version in obsolete for model in version.members} - public
        folders = [repository.version_folder(name, version.number) for version in obsolete]
        # The members' versions that neither a config nor a manifest that stays refers to.
        used = repository.pinned_versions()
        for model in repository.models():
            for number in repository.versions(model):
                if repository.version_folder(model, number) in folders:
                    continue
                manifest = repository.manifest(model, number)
                for member, version in (manifest.members if manifest else {}).items():
                    used.setdefault(member, set()).add(version)
        members = [
            repository.version_folder(model, number)
            for model in sorted(touched)
            for number in repository.versions(model)
            if number not in used.get(model, set())
        ]
        freed = sum(map(size_bytes, (*folders, *members)))
        # The pipeline's versions last: they alone say what is to be deleted.
        for folder in (*members, *folders):
            repository.remove_folder(folder)
        for model in touched:
            if not repository.versions(model):
                repository.remove(model)
    return [f"{folder.parent.name}/{folder.name}" for folder in (*folders, *members)], freed


def kept_longer(deployment: Deployment, name: str, keep: int) -> dict[int, str]:
    """The versions that ``prune`` leaves besides the ``keep`` newest: number -> why."""
    return _needed(deployment, name, deployment.repository.versions(name)[:-keep])


def _needed(deployment: Deployment, name: str, numbers: Sequence[int]) -> dict[int, str]:
    """Those of the versions that may not be deleted: number -> why."""
    repository = deployment.repository
    active = repository.active_version(name)
    served = {replica.address: replica.served(name) for replica in deployment.replicas}
    needed: dict[int, str] = {}
    for number in numbers:
        served_by = [address for address, versions in served.items() if number in versions]
        if number == active:
            needed[number] = "it is the active version"
        elif repository.is_published(f"{name}.v{number}"):
            needed[number] = f"it is served as {name}.v{number}, a canary or shadow"
        elif served_by:
            needed[number] = f"{', '.join(served_by)} still serves it"
    return needed
