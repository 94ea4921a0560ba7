"""``model.json`` beside the model: what the engine may use, and how much may wait for it."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path

SETTINGS_FILE, GGUF_FILE, IR_FILE = "model.json", "model.gguf", "openvino_model.xml"
BLOCK = 32  # tokens in one block of the KV cache on a CPU


class ModelRefused(Exception):
    """The model's folder or settings cannot be served."""


@dataclass(frozen=True)
class Settings:
    """What ``model.json`` may say; every key is optional."""

    context_length: int = 2048  # tokens of prompt and output together
    num_kv_blocks: int = 256  # of 32 tokens each, for all sequences together
    kv_cache_precision: str = "f16"  # or u8, f32
    inference_precision: str = "f32"
    max_num_batched_tokens: int = 256  # in one step: longer prompts are read in pieces
    enable_prefix_caching: bool = True
    threads: int = 0  # 0: the engine chooses
    max_queue_requests: int = 64
    max_queue_tokens: int = 65536  # prompts and the most that they may generate
    max_queue_s: int = 20  # until a request's first token: below the gateway's deadline
    max_running: int = 64  # sequences
    max_compile_s: int = 10  # for the schema, regular expression or grammar of one request
    max_step_s: int = 60  # without a step for so long, the engine hangs and is started again
    max_structures_mib: int = 64  # for compiled ones: beyond it the engine is opened anew
    stop_token_ids: list[int] = field(default_factory=list)  # end tokens that the file lacks
    normalize_nfc: bool = False  # text, before it is tokenized: OpenVINO's tokenizer does not

    @classmethod
    def read(cls, folder: Path) -> "Settings":
        """Raises ModelRefused for a key or a type that is not known, and for what cannot fit."""
        file = folder / SETTINGS_FILE
        try:
            values = json.loads(file.read_bytes()) if file.is_file() else {}
        except ValueError as error:
            raise ModelRefused(f"{SETTINGS_FILE} is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise ModelRefused(f"{SETTINGS_FILE} must hold one object")
        known = {one.name: one.type for one in fields(cls)}
        for name, value in values.items():
            if name not in known:
                raise ModelRefused(f"{SETTINGS_FILE}: {name!r} is not one of {', '.join(known)}")
            if not _is_a(known[name], value) or (type(value) is int and value < 0):
                raise ModelRefused(f"{SETTINGS_FILE}: {name} cannot be {value!r}")
        settings = cls(**values)
        if settings.kv_cache_precision not in ("u8", "f16", "f32"):
            raise ModelRefused(f"{SETTINGS_FILE}: kv_cache_precision must be u8, f16 or f32")
        if settings.context_length > settings.num_kv_blocks * BLOCK:
            raise ModelRefused(
                f"{SETTINGS_FILE}: {settings.num_kv_blocks} blocks of {BLOCK} tokens do not hold "
                f"one context of {settings.context_length} tokens"
            )
        return settings


def _is_a(kind: object, value: object) -> bool:
    if kind == list[int]:
        return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)
    return type(value) is kind


def model_path(folder: Path) -> Path:
    """The GGUF file, or the folder of OpenVINO's own format. Raises ModelRefused for neither."""
    if (folder / GGUF_FILE).is_file():
        return folder / GGUF_FILE
    if (folder / IR_FILE).is_file():
        return folder
    raise ModelRefused(f"the version folder has neither {GGUF_FILE} nor {IR_FILE}")
