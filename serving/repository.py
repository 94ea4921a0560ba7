"""Read a model repository: which models in it are meant to be called by name."""

from pathlib import Path

from modelspec.face import INTERNAL_PARAMETER
from modelspec.layout import CONFIG_FILE, version_folders
from modelspec.pbtxt import parse
from serving.errors import ModelLoadFailed


def top_models(repository: Path) -> list[str]:
    """The models with a version that are not internal steps or engines, sorted by name.

    A model without a config counts: its backend may complete it from the file.
    """
    if not repository.is_dir():
        return []
    folders = sorted(path for path in repository.iterdir() if path.is_dir())
    return [path.name for path in folders if version_folders(path) and not _is_internal(path)]


def _is_internal(folder: Path) -> bool:
    config = folder / CONFIG_FILE
    if not config.is_file():
        return False
    try:
        parameters = parse(config.read_text(encoding="utf-8")).parameters
    except ValueError as error:
        raise ModelLoadFailed(folder.name, str(error)) from error
    return bool(parameters[INTERNAL_PARAMETER].string_value == "true")
