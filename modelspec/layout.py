"""Where things lie in a model repository, and which names are allowed there."""

import os
import re
from pathlib import Path

CONFIG_FILE = "config.pbtxt"
ENGINE_FILE = "model.onnx"
PLAN_FILE = "model.plan"
CONFIGS = "configs"
STEP_FILE = "model.py"

# The gateway uses the same pattern on the wire: nothing in it can climb out of a folder.
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
# What ``serving`` puts behind a pipeline's name for as long as a canary or a candidate lasts.
OWN_SUFFIX = re.compile(r"\.(v\d+|candidate)\Z")
# The first part of a path under /v1 that is OpenAI's, whether the gateway offers it or not: its
# clients read no other shape of an error than OpenAI's.
NOT_OFFERED_OPENAI = frozenset(
    {
        "assistants",
        "audio",
        "batches",
        "containers",
        "conversations",
        "edits",
        "evals",
        "files",
        "fine-tunes",
        "fine_tuning",
        "images",
        "moderations",
        "organization",
        "realtime",
        "responses",
        "skills",
        "threads",
        "uploads",
        "vector_stores",
        "videos",
    }
)
OPENAI_RESOURCES = NOT_OFFERED_OPENAI | {"chat", "completions", "embeddings", "models"}
# What stands under /v1 already, so that no pipeline may be called so.
RESERVED_NAMES = OPENAI_RESOURCES | {"pipelines", "jobs"}


def require_model_name(name: str) -> str:
    """The name itself; ValueError when Triton's folders or the gateway's routes cannot carry it."""
    if not MODEL_NAME.match(name) or ".." in name:
        raise ValueError(
            f"illegal model name {name!r}: use letters, digits, '.', '_' and '-', at most 128, "
            "beginning with a letter or a digit"
        )
    if name in RESERVED_NAMES:
        raise ValueError(
            f"the name {name!r} is reserved: OpenAI's API or the gateway has /v1/{name}; "
            "choose another"
        )
    return name


def require_pipeline_name(name: str) -> str:
    """The name of a public model that is to be published; ValueError for what
    ``require_model_name`` refuses, and for the names that canaries and candidates get, which are
    removed again."""
    require_model_name(name)
    own = OWN_SUFFIX.search(name)
    if own:
        raise ValueError(
            f"the name {name!r} ends in {own[0]!r}, which is how canaries (NAME.v7) and candidates "
            f"(NAME.candidate) are called: choose another, such as {name.replace('.', '_')!r}"
        )
    return name


def version_folders(model_dir: Path) -> list[int]:
    """The version numbers present under a model's folder, ascending; [] when there are none."""
    if not model_dir.is_dir():
        return []
    return sorted(
        int(entry.name)
        for entry in model_dir.iterdir()
        if entry.is_dir() and entry.name.isdecimal() and entry.name.isascii()
    )


def staging_folder(repository: Path) -> Path:
    """The folder beside the repository where models are built.

    Not inside it: Triton lists every sub-folder of a repository, dot-folders too, as a model. Not
    elsewhere: os.rename is atomic only within one file system.
    """
    return repository.parent / f".{repository.name}.staging"


def atomic_write(path: Path, data: bytes | str, mode: int = 0o644) -> None:
    """Write the file whole or not at all: a temporary file beside it, fsync, rename."""
    payload = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
