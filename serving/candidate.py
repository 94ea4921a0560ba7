"""The candidate: the pipeline with its new pins under another name, asked before the pin moves.

Loading it loads the new engine versions beside the old; nothing that clients call has changed yet.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.face import FACE_PARAMETER, INTERNAL_PARAMETER
from modelspec.layout import CONFIG_FILE
from serving.errors import ModelLoadFailed, PublishFailed
from serving.files import owned_path, remove_folder
from serving.pins import as_bytes, pins, with_versions
from serving.repository import CANDIDATE_SUFFIX, read_config
from serving.steps import Step
from serving.target import Target
from serving.variants import copy_variants


def try_out(target: Target, name: str, version: int, config: ModelConfig) -> None:
    """Load the candidate on every server and ask it the golden sample; PublishFailed or
    ModelLoadFailed if one of them does not answer it. Nothing is left in the repository."""
    with _in_place(target, name, version, config) as candidate:
        target.tell(Step.TRIED, candidate)
        for replica in target.replicas:
            for member in pins(config):  # by itself: its error says more than the candidate's
                replica.control.load(member)
            replica.control.load(candidate)
            target.tell(Step.LOADED, f"{candidate} at {replica.address}")
            replica.require_golden(candidate, config)
            target.tell(Step.PROBED, f"{candidate} at {replica.address}")
            replica.control.unload(candidate)
    target.tell(Step.CLEARED, candidate)


def clear(target: Target, name: str) -> None:
    """Take a candidate that was left out of the servers and of the repository; a model that only
    has its name stays."""
    candidate = name + CANDIDATE_SUFFIX
    if not _is_ours(target.repository, candidate):
        return
    for replica in target.replicas:
        replica.drop(candidate)
    remove_folder(target.repository, target.repository / candidate)


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
        parameters[INTERNAL_PARAMETER].string_value == "true" and FACE_PARAMETER not in parameters
    )


@contextmanager
def _in_place(target: Target, name: str, version: int, config: ModelConfig) -> Iterator[str]:
    repository, candidate = target.repository, name + CANDIDATE_SUFFIX
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
    own.parameters.pop(FACE_PARAMETER, None)
    (staged / CONFIG_FILE).write_bytes(as_bytes(own))
    copy_variants(repository / name, staged, own)
    shutil.copytree(repository / name / str(version), staged / str(version), copy_function=_link)
    staged.rename(repository / candidate)
    try:
        yield candidate
    finally:
        remove_folder(repository, repository / candidate)


def _link(source: str, target: str) -> str:
    Path(target).hardlink_to(source)
    return target
