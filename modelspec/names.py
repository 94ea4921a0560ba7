"""Names: which ones a model may have, and what the members of a pipeline are called.

mood            the public pipeline
mood_pre        the step before the engine
mood_onnx       the engine, or mood_trt where a TensorRT plan serves it, or mood_torch where
                torch does
mood_post       the step after the engine
"""

import re
from enum import StrEnum

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
        "skills",
        "threads",
        "uploads",
        "vector_stores",
        "videos",
    }
)
OPENAI_RESOURCES = NOT_OFFERED_OPENAI | {
    "chat",
    "completions",
    "embeddings",
    "models",
    "responses",
}
# Names already taken under /v1, which no pipeline may have. OpenAI's API has nothing at /v1/chat
# itself, and ``chat`` is the name of our own language model.
RESERVED_NAMES = (OPENAI_RESOURCES - {"chat"}) | {"pipelines", "jobs", "rerank", "score"}


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


class Role(StrEnum):
    """What a member does in its pipeline."""

    PRE = "pre"
    ENGINE = "onnx"
    PLAN = "trt"
    PROGRAM = "torch"
    POST = "post"


def member_name(pipeline: str, role: Role) -> str:
    """The name of the pipeline's member with this role: ``mood_onnx``."""
    return f"{pipeline}_{role}"


def role_of(pipeline: str, member: str) -> Role | None:
    """The role of a member, by its name, with a generation's suffix (``mood_onnx.g2``) or without;
    None if the name says nothing."""
    base = member.removeprefix(pipeline).partition(".")[0]
    return next((role for role in Role if base == f"_{role}"), None)


def generation_name(model: str, generation: int) -> str:
    """The name of a model whose config changed in meaning: ``mood_onnx``, then ``mood_onnx.g2``."""
    return model if generation == 1 else f"{model}.g{generation}"


def possible_models(pipeline: str) -> list[str]:
    """The names that a pipeline takes in a repository: its own, and each member's it may have."""
    return [pipeline, *(member_name(pipeline, role) for role in Role)]
