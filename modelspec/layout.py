"""Where files are in a model repository."""

from pathlib import Path

CONFIG_FILE = "config.pbtxt"
ENGINE_FILE = "model.onnx"
PLAN_FILE = "model.plan"
PROGRAM_FILE, GPU_PROGRAM_FILE = "model.pt2", "model.cuda.pt2"
LANGUAGE_MODEL_FILE = "model.gguf"
ENGINE_FILES = (ENGINE_FILE, LANGUAGE_MODEL_FILE)
SETTINGS_FILE = "model.json"  # a language model's, beside it
CONFIGS = "configs"
STEP_FILE = "model.py"


def staging_folder(repository: Path) -> Path:
    """The folder beside the repository where models are built.

    Not inside it: Triton takes every sub-folder of a repository, dot-folders too, for a model. Not
    elsewhere: os.rename is atomic only within one file system.
    """
    return repository.parent / f".{repository.name}.staging"
