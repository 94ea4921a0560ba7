"""What is published in the repository under a name."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from modelspec.layout import ENGINE_FILES
from modelspec.names import possible_models
from serving.errors import ServingError
from serving.repository.model_repository import ModelRepository

if TYPE_CHECKING:
    from converters.proof.record import Record


def conflicting_models(repository: ModelRepository, name: str) -> list[str]:
    """The models that a pipeline of this name would replace."""
    return [model for model in possible_models(name) if repository.folder(model).exists()]


def engine_file(repository: ModelRepository, name: str) -> Path:
    """The pipeline's engine, in its version folder; ServingError when it has none. A language model
    is its own engine."""
    repository.require_published(name)
    own = {name: repository.active_version(name)}
    for model, version in {**repository.pinned_members(name), **own}.items():
        for file in ENGINE_FILES:
            path = repository.version_folder(model, version) / file
            if path.is_file():
                return path
    names = " or ".join(ENGINE_FILES)
    raise ServingError(f"{name} has no engine in {repository} ({names}): nothing to prove")


def published_record(repository: ModelRepository, name: str) -> "Record | None":
    """The record beside the pipeline's engine; None when there is no readable one."""
    from converters.cache import PROOF_FILE
    from converters.proof.record import Record

    try:
        return Record.load(engine_file(repository, name).with_name(PROOF_FILE))
    except (ServingError, OSError, ValueError, KeyError, TypeError):
        return None


def copy_pipeline(repository: ModelRepository, name: str, destination: Path) -> None:
    """Copy the pipeline and its members as they are."""
    for model in (name, *repository.pinned_members(name)):
        shutil.copytree(repository.folder(model), destination / model)
