"""What is published in the repository under a name."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from modelspec.layout import CONFIG_FILE, ENGINE_FILES
from modelspec.names import possible_models
from modelspec.pbtxt import parse
from serving.errors import ServingError
from serving.repository.model_repository import ModelRepository

if TYPE_CHECKING:
    from converters.proof.record import Record


def conflicting_models(repository: Path, name: str) -> list[str]:
    """The models that a pipeline of this name would replace."""
    return [model for model in possible_models(name) if (repository / model).exists()]


def pinned(repository: Path, name: str) -> dict[str, int]:
    """The members of the pipeline and the version of each that it pins; ServingError when the
    repository has no such pipeline."""
    if not ModelRepository(repository).is_published(name):
        raise ServingError(f"there is no model {name!r} in {repository}: convert one first")
    config = parse((repository / name / CONFIG_FILE).read_text(encoding="utf-8"))
    return {step.model_name: step.model_version for step in config.ensemble_scheduling.step}


def engine_file(repository: Path, name: str) -> Path:
    """The pipeline's engine, in its version folder; ServingError when it has none. A language model
    is its own engine."""
    own = {name: ModelRepository(repository).active_version(name)}
    for model, version in {**pinned(repository, name), **own}.items():
        for file in ENGINE_FILES:
            path = repository / model / str(version) / file
            if path.is_file():
                return path
    names = " or ".join(ENGINE_FILES)
    raise ServingError(f"{name} has no engine in {repository} ({names}): nothing to prove")


def published_record(repository: Path, name: str) -> "Record | None":
    """The record beside the pipeline's engine; None when there is no readable one."""
    from converters.cache import PROOF_FILE
    from converters.proof.record import Record

    try:
        return Record.load(engine_file(repository, name).with_name(PROOF_FILE))
    except (ServingError, OSError, ValueError, KeyError, TypeError):
        return None


def copy_pipeline(repository: Path, name: str, destination: Path) -> None:
    """Copy the pipeline and its members as they are."""
    for model in (name, *pinned(repository, name)):
        shutil.copytree(repository / model, destination / model)
