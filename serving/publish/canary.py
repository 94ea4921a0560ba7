"""A canary: another version of a pipeline, served beside it as ``NAME.v7`` for part of the traffic.

The gateway decides which requests go there (``[routes.NAME]`` in gateway.toml). Here a canary is
just a second pipeline with other pins, which lasts until it is promoted or stopped.
"""

import time

from modelspec.parameters import CANARY_PARAMETER
from serving.errors import ModelLoadFailed, PublishFailed, ServingError
from serving.publish.deployment import Deployment
from serving.publish.phases import PublishPhase
from serving.publish.recovery import recover
from serving.publish.versions import switch_to
from serving.repository.configs import pins, with_versions
from serving.repository.model_repository import ModelRepository

# After this time no worker of a gateway routes requests there any more, busy or not; one of them
# may have read its rules just before the change.
REROUTED_S = 2.0


def canary_name(name: str, version: int) -> str:
    return f"{name}.v{version}"


def canaries(repository: ModelRepository, name: str) -> list[int]:
    """The versions of the pipeline that are served as canaries."""
    return sorted(
        int(model.removeprefix(f"{name}.v"))
        for model in repository.models()
        if _may_be_canary(model, name) and is_canary_of(repository, model, name)
    )


def is_canary_of(repository: ModelRepository, model: str, name: str) -> bool:
    """Whether the model was started as a canary of the pipeline. Its config says so; its name alone
    does not."""
    if not repository.is_published(model):
        return False
    try:
        config = repository.config(model)
    except ModelLoadFailed:
        return False
    return bool(config.parameters[CANARY_PARAMETER].string_value == name)


def start(deployment: Deployment, name: str, version: int) -> str:
    """Serve the version as a canary on every server and return the canary's name.

    PublishFailed if another version is the canary already, or if this one fails its golden sample;
    in that case a new canary is removed again.
    """
    repository = deployment.repository
    with repository.lock(f"canary {name}"):
        recover(deployment)
        repository.require_published(name)
        if version == repository.active_version(name):
            raise PublishFailed(
                f"version {version} of {name} is already the active version: choose another"
            )
        others = [other for other in canaries(repository, name) if other != version]
        if others:
            raise PublishFailed(
                f"{canary_name(name, others[0])} is the canary of {name}, and a pipeline has only "
                f"one at a time: tidegate promote {name} makes it the active version, tidegate "
                f"canary {name} --weight 0 stops it"
            )
        config = repository.verified_config(name, version)
        canary = canary_name(name, version)
        _require_canary(repository, canary, name)
        is_new = not repository.is_published(canary)
        if is_new:
            repository.list_also(pins(config))
            canary_config = with_versions(config, [version])
            canary_config.name = canary
            canary_config.parameters[CANARY_PARAMETER].string_value = name
            repository.install_copy(name, version, canary_config)
        try:
            for replica in deployment.replicas:
                replica.control.load(canary)
                replica.require_golden(canary, config)
        except ServingError:
            if is_new:
                _remove(deployment, canary, name)
            raise
        deployment.report(PublishPhase.SERVED, canary)
    return canary


def stop(deployment: Deployment, name: str, version: int) -> None:
    """Remove the canary. Call this once the gateways' rules route no request there: it waits for
    ``grace_s`` seconds, and at least for ``REROUTED_S``.

    PublishFailed, and nothing is removed, if the model of that name is not a canary of ``name``.
    """
    canary = canary_name(name, version)
    with deployment.repository.lock(f"stop canary {name}"):
        _require_canary(deployment.repository, canary, name)
        recover(deployment)
        if deployment.replicas:
            time.sleep(max(deployment.grace_s, REROUTED_S))
        _remove(deployment, canary, name)


def unload_left(deployment: Deployment, name: str) -> list[str]:
    """Unload canaries of the pipeline that are no longer in the repository but that a server still
    serves (it could not be reached when the canary was removed). Returns their names."""
    unloaded = []
    for replica in deployment.replicas:
        for model in sorted({state.name for state in replica.control.index()}):
            if not _may_be_canary(model, name) or deployment.repository.is_published(model):
                continue
            if not replica.serves(model):
                continue
            try:
                config = replica.control.config(model)
            except ServingError:
                continue
            if config.parameters[CANARY_PARAMETER].string_value == name:
                replica.control.unload(model)
                unloaded.append(model)
    return unloaded


def promote(deployment: Deployment, name: str, version: int) -> None:
    """Make the canary's version the pipeline's own. The canary stays until it is stopped."""
    if version not in canaries(deployment.repository, name):
        raise PublishFailed(
            f"{name} has no canary of version {version}: see tidegate canary {name}"
        )
    switch_to(deployment, name, version)


def _may_be_canary(model: str, name: str) -> bool:
    return model.startswith(f"{name}.v") and model.removeprefix(f"{name}.v").isdecimal()


def _require_canary(repository: ModelRepository, canary: str, name: str) -> None:
    if repository.is_published(canary) and not is_canary_of(repository, canary, name):
        raise PublishFailed(
            f"{canary} is a separate model and not a canary of {name} (its config has no "
            f"{CANARY_PARAMETER}), so it was left unchanged. Publish it under a name that does not "
            "end in .v and a number"
        )


def _remove(deployment: Deployment, canary: str, name: str) -> None:
    repository = deployment.repository
    if not is_canary_of(repository, canary, name):
        return
    members = list(repository.pinned_members(canary))
    for replica in deployment.replicas:
        replica.drop(canary)
    repository.remove(canary)
    deployment.retire_unpinned(members)
