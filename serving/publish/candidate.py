"""The candidate: the pipeline with its new pins under another name, probed before the pin moves.

Loading it loads the new engine versions beside the old ones; nothing that clients call has changed
yet.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.layout import CONFIG_FILE
from modelspec.parameters import ENDPOINT_PARAMETER, INTERNAL_PARAMETER
from serving.errors import ModelLoadFailed, PublishFailed
from serving.publish.deployment import Deployment
from serving.publish.phases import PublishPhase
from serving.repository.config_profiles import copy_profiles
from serving.repository.files import owned_path, remove_folder
from serving.repository.model_repository import CANDIDATE_SUFFIX, read_config
from serving.repository.pins import as_bytes, pins, with_versions


def try_out(deployment: Deployment, name: str, version: int, config: ModelConfig) -> None:
    """Load the candidate on every server and probe it with the golden sample.

    PublishFailed or ModelLoadFailed if it fails on one of them. The candidate is removed from the
    repository in any case.
    """
    with _installed(deployment, name, version, config) as candidate:
        deployment.tell(PublishPhase.TRIED, candidate)
        for replica in deployment.replicas:
            for member in pins(config):  # by itself: its error says more than the candidate's
                replica.control.load(member)
            replica.control.load(candidate)
            deployment.tell(PublishPhase.LOADED, f"{candidate} at {replica.address}")
            replica.require_golden(candidate, config)
            deployment.tell(PublishPhase.PROBED, f"{candidate} at {replica.address}")
            replica.control.unload(candidate)
    deployment.tell(PublishPhase.CLEARED, candidate)


def clear(deployment: Deployment, name: str) -> None:
    """Remove a leftover candidate from the servers and from the repository. A model that merely has
    a candidate's name stays."""
    candidate = name + CANDIDATE_SUFFIX
    if not _is_ours(deployment.repository, candidate):
        return
    for replica in deployment.replicas:
        replica.drop(candidate)
    remove_folder(deployment.repository, deployment.repository / candidate)


def _is_ours(repository: Path, candidate: str) -> bool:
    """A candidate is internal and has no endpoint schema; a partial one, without a config, counts
    too. A user's model of that name does neither."""
    if not (repository / candidate / CONFIG_FILE).is_file():
        return True
    try:
        parameters = read_config(repository, candidate).parameters
    except ModelLoadFailed:
        return False
    return bool(
        parameters[INTERNAL_PARAMETER].string_value == "true"
        and ENDPOINT_PARAMETER not in parameters
    )


@contextmanager
def _installed(
    deployment: Deployment, name: str, version: int, config: ModelConfig
) -> Iterator[str]:
    repository, candidate = deployment.repository, name + CANDIDATE_SUFFIX
    if (repository / candidate).exists() and not _is_ours(repository, candidate):
        raise PublishFailed(
            f"{candidate} is a separate model, and {name} is probed under that name before it is "
            f"published: rename {candidate} first"
        )
    staged = owned_path(repository, "candidate")
    staged.mkdir()
    candidate_config = with_versions(config, [version])
    candidate_config.name = candidate
    candidate_config.parameters[INTERNAL_PARAMETER].string_value = "true"
    candidate_config.parameters.pop(ENDPOINT_PARAMETER, None)
    (staged / CONFIG_FILE).write_bytes(as_bytes(candidate_config))
    copy_profiles(repository / name, staged, candidate_config)
    shutil.copytree(repository / name / str(version), staged / str(version), copy_function=_link)
    staged.rename(repository / candidate)
    try:
        yield candidate
    finally:
        remove_folder(repository, repository / candidate)


def _link(source: str, target: str) -> str:
    Path(target).hardlink_to(source)
    return target
