"""The candidate: the pipeline with its new pins under another name, probed before the pin moves.

Loading it loads the new engine versions beside the old ones; nothing that clients call has changed
yet.
"""

from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.parameters import ENDPOINT_PARAMETER, INTERNAL_PARAMETER
from serving.errors import ModelLoadFailed, PublishFailed
from serving.publish.deployment import Deployment
from serving.publish.phases import PublishPhase
from serving.repository.configs import pins, with_versions
from serving.repository.model_repository import CANDIDATE_SUFFIX, ModelRepository


def try_out(deployment: Deployment, name: str, version: int, config: ModelConfig) -> None:
    """Load the candidate on every server and probe it with the golden sample.

    PublishFailed or ModelLoadFailed if it fails on one of them. The candidate is removed from the
    repository in any case.
    """
    repository, candidate = deployment.repository, name + CANDIDATE_SUFFIX
    if repository.folder(candidate).exists() and not _is_ours(repository, candidate):
        raise PublishFailed(
            f"{candidate} is a separate model, and {name} is probed under that name before it is "
            f"published: rename {candidate} first"
        )
    candidate_config = with_versions(config, [version])
    candidate_config.name = candidate
    candidate_config.parameters[INTERNAL_PARAMETER].string_value = "true"
    candidate_config.parameters.pop(ENDPOINT_PARAMETER, None)
    repository.install_copy(name, version, candidate_config, link=True)
    try:
        deployment.report(PublishPhase.TRIED, candidate)
        for replica in deployment.replicas:
            for member in pins(config):  # by itself: its error says more than the candidate's
                replica.control.load(member)
            replica.control.load(candidate)
            deployment.report(PublishPhase.LOADED, f"{candidate} at {replica.address}")
            replica.require_golden(candidate, config)
            deployment.report(PublishPhase.PROBED, f"{candidate} at {replica.address}")
            replica.control.unload(candidate)
    finally:
        repository.remove(candidate)
    deployment.report(PublishPhase.CLEARED, candidate)


def clear(deployment: Deployment, name: str) -> None:
    """Remove a leftover candidate from the servers and from the repository. A model that merely has
    a candidate's name stays."""
    candidate = name + CANDIDATE_SUFFIX
    if not _is_ours(deployment.repository, candidate):
        return
    for replica in deployment.replicas:
        replica.drop(candidate)
    deployment.repository.remove(candidate)


def _is_ours(repository: ModelRepository, candidate: str) -> bool:
    """A candidate is internal and has no endpoint schema; a partial one, without a config, counts
    too. A user's model of that name does neither."""
    if not repository.has_config(candidate):
        return True
    try:
        parameters = repository.config(candidate).parameters
    except ModelLoadFailed:
        return False
    return bool(
        parameters[INTERNAL_PARAMETER].string_value == "true"
        and ENDPOINT_PARAMETER not in parameters
    )
