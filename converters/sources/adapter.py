"""A folder that holds a LoRA adapter: where its base model is, and why it may not be merged."""

import json
from collections.abc import Mapping
from pathlib import Path

ADAPTER = "adapter_config.json"
FILES = ("adapter_model.safetensors", "adapter_model.bin")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
# The settings that peft writes for an adapter that computes W + B·A·alpha/r: any other setting that
# is not empty means that the adapter computes something else.
_PLAIN = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "modules_to_save",
    "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "target_modules", "task_type", "use_rslora",
}  # fmt: skip
# The initialisations that leave W as it is; the others (PiSSA, OLoRA, CorDA, LoftQ) change W
# itself.
_PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter alone, without the weights that it belongs to."""
    return (folder / ADAPTER).is_file() and not _has_weights(folder)


def why_not_adapter(folder: Path, base: str = "") -> str:
    """Say what to do with a folder whose adapter cannot be merged; "" for a folder whose adapter
    can be merged, and for one without an adapter. ``base`` is the folder or name that the user gave
    with --base.

    transformers applies an adapter beside weights where peft is installed and ignores it where peft
    is not, so such a folder does not define one answer.
    """
    if not (folder / ADAPTER).is_file():
        return ""
    if _has_weights(folder):
        return (
            f"{folder} holds weights and an {ADAPTER} beside them, which transformers applies only "
            f"where peft is installed: remove {ADAPTER} if the weights are merged already, or move "
            "the adapter to its own folder and give that, with --base for the weights"
        )
    reason = _why_settings_refused(folder, settings_of(folder))
    if reason or base_of(folder, base):
        return reason
    declared = settings_of(folder).get("base_model_name_or_path") or "its base model"
    target = base or declared
    return (
        f"{folder} holds a LoRA adapter for {target}, and there is no such folder here: give the "
        f"base with --base (from the Hugging Face Hub: hf download {declared} --local-dir "
        f"{Path(str(declared)).name}, and --base ./{Path(str(declared)).name})"
    )


def base_of(folder: Path, override: str = "") -> Path | None:
    """The base model's folder: ``override`` if it is given, else what the adapter names, as a path
    or relative to the adapter; None if there is no such folder."""
    name = override or str(settings_of(folder).get("base_model_name_or_path") or "")
    candidates = [Path(name)] if override else [Path(name), folder / name]
    return next((path for path in candidates if name and (path / "config.json").is_file()), None)


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in WEIGHTS)


def settings_of(folder: Path) -> Mapping[str, object]:
    """The document in adapter_config.json; {} if it cannot be read."""
    try:
        document = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _why_settings_refused(folder: Path, settings: Mapping[str, object]) -> str:
    """Say why the adapter computes something other than W + B·A·alpha/r; "" if it does not."""
    remedy = (
        "merge it with peft and give the result: PeftModel.from_pretrained(base, "
        f"{str(folder)!r}).merge_and_unload().save_pretrained(NEW), the tokenizer too"
    )
    if not settings:
        return f"{folder}/{ADAPTER} is not a JSON object: copy it again"
    if not any((folder / name).is_file() for name in FILES):
        return f"{folder} has an {ADAPTER} but no {FILES[0]}: copy the adapter's weights too"
    if settings.get("peft_type") != "LORA":
        return (
            f"{folder} holds an adapter of type {settings.get('peft_type')!r}, and only LORA is "
            f"merged here: {remedy}, if that type can be merged"
        )
    initialisation = settings.get("init_lora_weights")
    if initialisation not in _PLAIN_INITIALISATIONS:
        return (
            f"{folder} was initialised with init_lora_weights={initialisation!r}, which changes "
            f"the base's own weights: {remedy}"
        )
    unsupported = sorted(key for key, value in settings.items() if value and key not in _PLAIN)
    if unsupported:
        return (
            f"{folder}/{ADAPTER} sets {unsupported[0]} to {str(settings[unsupported[0]])[:60]!r}, "
            f"which goes beyond W + B·A·alpha/r: {remedy}"
        )
    return ""
