"""Where files are in a model repository, and which names are allowed there."""

import os
import re
from pathlib import Path

CONFIG_FILE = "config.pbtxt"
ENGINE_FILE = "model.onnx"
PLAN_FILE = "model.plan"
CONFIGS = "configs"
STEP_FILE = "model.py"

# The gateway accepts the same pattern on the wire: no such name can leave its folder.
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
# What ``serving`` appends to a pipeline's name while a canary or a candidate exists.
ROLLOUT_SUFFIX = re.compile(r"\.(v\d+|candidate)\Z")
# The first path segments under /v1 that belong to OpenAI's API and that the gateway does not offer:
# OpenAI's clients read only errors in OpenAI's shape, so these routes answer in it too.
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
# Names already taken under /v1, which no pipeline may have.
RESERVED_NAMES = OPENAI_RESOURCES | {"pipelines", "jobs"}


def require_model_name(name: str) -> str:
    """Return the name itself; ValueError when Triton's folders or the gateway's routes cannot have
    it."""
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
    """Return the name of a public model to publish; ValueError for what ``require_model_name``
    refuses, and for the names of canaries and candidates, which are removed again."""
    require_model_name(name)
    suffix = ROLLOUT_SUFFIX.search(name)
    if suffix:
        raise ValueError(
            f"the name {name!r} ends in {suffix[0]!r}, as the names of canaries (NAME.v7) and "
            f"candidates (NAME.candidate) do: choose another, such as {name.replace('.', '_')!r}"
        )
    return name


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


def atomic_write(path: Path, data: bytes | str, mode: int = 0o644) -> None:
    """Write the whole file or nothing: a temporary file beside it, fsync, rename."""
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
