"""Read a model repository: which models clients call by name, what they pin, what is needed."""

from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.layout import CONFIG_FILE, version_folders
from modelspec.parameters import INTERNAL_PARAMETER
from modelspec.pbtxt import parse
from serving.errors import ModelLoadFailed, ServingError
from serving.repository.pins import NEWEST, is_ensemble, listed_versions, pins

CANDIDATE_SUFFIX = ".candidate"


def top_models(repository: Path) -> list[str]:
    """The models that have a version and are not internal steps or engines, sorted by name.

    A model without a config counts: its backend may complete the config from the model file.
    """
    return [
        folder.name
        for folder in model_folders(repository)
        if version_folders(folder) and not _is_internal(folder)
    ]


def model_folders(repository: Path) -> list[Path]:
    if not repository.is_dir():
        return []
    return sorted(path for path in repository.iterdir() if path.is_dir())


def is_published(repository: Path, model: str) -> bool:
    """Whether the model has a config and at least one version."""
    folder = repository / model
    return (folder / CONFIG_FILE).is_file() and bool(version_folders(folder))


def read_config(repository: Path, model: str) -> ModelConfig:
    """The model's config; ModelLoadFailed if it does not parse, ServingError if it is missing."""
    try:
        return parse((repository / model / CONFIG_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ServingError(f"there is no model {model!r} in {repository}") from None
    except ValueError as error:
        raise ModelLoadFailed(model, str(error)) from error


def active_version(repository: Path, model: str) -> int:
    """The version that the model's config serves: the newest listed, or the newest folder; 0 if
    there is none."""
    if not is_published(repository, model):
        return 0
    listed = listed_versions(read_config(repository, model))
    return max(listed or version_folders(repository / model))


def active_members(repository: Path, pipeline: str) -> dict[str, int]:
    """The models that the pipeline pins now, with their versions; {} for a single model."""
    config = read_config(repository, pipeline)
    return {model: max(versions) for model, versions in pins(config).items()}


def needed(repository: Path) -> dict[str, set[int]]:
    """The versions of each model that some pipeline's config pins now."""
    versions_by_model: dict[str, set[int]] = {}
    for folder in model_folders(repository):
        if folder.name.endswith(CANDIDATE_SUFFIX) or not (folder / CONFIG_FILE).is_file():
            continue
        try:
            config = read_config(repository, folder.name)
        except ModelLoadFailed:
            continue  # Triton does not serve it either
        for model, versions in pins(config).items() if is_ensemble(config) else ():
            versions_by_model.setdefault(model, set()).update(versions - {NEWEST})
    return versions_by_model


def _is_internal(folder: Path) -> bool:
    if not (folder / CONFIG_FILE).is_file():
        return False
    parameters = read_config(folder.parent, folder.name).parameters
    return bool(parameters[INTERNAL_PARAMETER].string_value == "true")
