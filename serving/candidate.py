"""The candidate: the pipeline with its new pins under another name, asked before the pin moves.

Loading it loads the new engine versions beside the old; nothing that clients call has changed yet.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.endpoint_schema import ENDPOINT_PARAMETER, INTERNAL_PARAMETER
from modelspec.layout import CONFIG_FILE
from serving.config_profiles import copy_profiles
from serving.deployment import Deployment
from serving.errors import ModelLoadFailed, PublishFailed
from serving.files import owned_path, remove_folder
from serving.pins import as_bytes, pins, with_versions
from serving.publish_phase import PublishPhase
from serving.repository import CANDIDATE_SUFFIX, read_config


def try_out(deployment: Deployment, name: str, version: int, config: ModelConfig) -> None:
    """Load the candidate on every server and ask it the golden sample; PublishFailed or
    ModelLoadFailed if one of them does not answer it. Nothing is left in the repository."""
    with _in_place(deployment, name, version, config) as candidate:
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
    """Take a candidate that was left out of the servers and of the repository; a model that only
    has its name stays."""
    candidate = name + CANDIDATE_SUFFIX
    if not _is_ours(deployment.repository, candidate):
        return
    for replica in deployment.replicas:
        replica.drop(candidate)
    remove_folder(deployment.repository, deployment.repository / candidate)


def _is_ours(repository: Path, candidate: str) -> bool:
    """A candidate is internal and has no schema of its own; half of one, without a config, is one
    too. Nobody else's model of that name is."""
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
def _in_place(
    deployment: Deployment, name: str, version: int, config: ModelConfig
) -> Iterator[str]:
    repository, candidate = deployment.repository, name + CANDIDATE_SUFFIX
    if (repository / candidate).exists() and not _is_ours(repository, candidate):
        raise PublishFailed(
            f"{candidate} is a model of its own, and {name} is tried under that name before it is "
            "published: publish the other under another name first"
        )
    staged = owned_path(repository, "candidate")
    staged.mkdir()
    own = with_versions(config, [version])
    own.name = candidate
    own.parameters[INTERNAL_PARAMETER].string_value = "true"
    own.parameters.pop(ENDPOINT_PARAMETER, None)
    (staged / CONFIG_FILE).write_bytes(as_bytes(own))
    copy_profiles(repository / name, staged, own)
    shutil.copytree(repository / name / str(version), staged / str(version), copy_function=_link)
    staged.rename(repository / candidate)
    try:
        yield candidate
    finally:
        remove_folder(repository, repository / candidate)


def _link(source: str, deployment: str) -> str:
    Path(deployment).hardlink_to(source)
    return deployment
