"""Where files are in a model repository."""

from pathlib import Path

CONFIG_FILE = "config.pbtxt"
ENGINE_FILE = "model.onnx"
PLAN_FILE = "model.plan"
CONFIGS = "configs"
STEP_FILE = "model.py"


def version_folders(model_dir: Path) -> list[int]:
    """The version numbers under a model's folder, ascending; [] when there are none."""
    if not model_dir.is_dir():
        return []
    return sorted(
        int(entry.name)
        for entry in model_dir.iterdir()
        if entry.is_dir() and entry.name.isdecimal() and entry.name.isascii()
    )


def staging_folder(repository: Path) -> Path:
    """The folder beside the repository where models are built.

    Not inside it: Triton takes every sub-folder of a repository, dot-folders too, for a model. Not
    elsewhere: os.rename is atomic only within one file system.
    """
    return repository.parent / f".{repository.name}.staging"
