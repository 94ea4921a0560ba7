"""A folder that holds a LoRA adapter: where its base is, and why it may not be merged."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ADAPTER = "adapter_config.json"
FILES = ("adapter_model.safetensors", "adapter_model.bin")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
# What peft writes of an adapter that is W + B·A·alpha/r: any other setting that is not empty means
# that it answers something else.
_PLAIN = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "modules_to_save",
    "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "target_modules", "task_type", "use_rslora",
}  # fmt: skip
# Those that begin from W as it is; the others (PiSSA, OLoRA, CorDA, LoftQ) change W itself.
_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")


def is_adapter(folder: Path) -> bool:
    """An adapter alone, without the weights that it belongs to."""
    return (folder / ADAPTER).is_file() and not _has_weights(folder)


def why_not_adapter(folder: Path, base: str = "") -> str:
    """What to do with a folder whose adapter cannot be merged; "" for one that can be, and for one
    that has none. ``base`` is what the user said that its base is.

    transformers applies an adapter that lies beside weights where peft is installed and leaves it
    out where it is not, so that such a folder does not say what it answers.
    """
    if not (folder / ADAPTER).is_file():
        return ""
    if _has_weights(folder):
        return (
            f"{folder} holds weights and {ADAPTER} beside them, which transformers applies only "
            f"where peft is installed: take {ADAPTER} out if the weights are merged already, or "
            "put the adapter into a folder of its own and give that, with --base for the weights"
        )
    reason = _why_not_settings(folder, settings_of(folder))
    if reason or base_of(folder, base):
        return reason
    named = settings_of(folder).get("base_model_name_or_path") or "its base model"
    said = base or named
    return (
        f"{folder} holds a LoRA adapter, to be merged into {said}, and there is no such folder "
        f"here: say with --base where it is (from the Hugging Face hub: hf download {named} "
        f"--local-dir {Path(str(named)).name}, and --base ./{Path(str(named)).name})"
    )


def base_of(folder: Path, said: str = "") -> Path | None:
    """The folder of the base: what was ``said``, or what the adapter names, as a path of its own or
    seen from the adapter's; None where there is no such folder."""
    named = said or str(settings_of(folder).get("base_model_name_or_path") or "")
    positions = [Path(named)] if said else [Path(named), folder / named]
    return next((each for each in positions if named and (each / "config.json").is_file()), None)


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in WEIGHTS)


def settings_of(folder: Path) -> Mapping[str, Any]:
    """adapter_config.json; {} where it cannot be read."""
    try:
        found = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _why_not_settings(folder: Path, settings: Mapping[str, Any]) -> str:
    """Why W + B·A·alpha/r is not what it answers; "" if it is."""
    todo = (
        "merge it with peft and give the result: PeftModel.from_pretrained(base, "
        f"{str(folder)!r}).merge_and_unload().save_pretrained(NEW), the tokenizer too"
    )
    if not settings:
        return f"{folder}/{ADAPTER} is no JSON object: copy it again"
    if not any((folder / name).is_file() for name in FILES):
        return f"{folder} has {ADAPTER} and no {FILES[0]}: copy the adapter's weights too"
    if settings.get("peft_type") != "LORA":
        return (
            f"{folder} holds an adapter of the kind {settings.get('peft_type')!r}, and only LORA "
            f"is merged here: {todo}, where that kind can be merged"
        )
    beginning = settings.get("init_lora_weights")
    if beginning not in _BEGINNINGS:
        return (
            f"{folder} was begun with init_lora_weights={beginning!r}, which changes the base's "
            f"own weights: {todo}"
        )
    strange = sorted(key for key, each in settings.items() if each and key not in _PLAIN)
    if strange:
        return (
            f"{folder}/{ADAPTER} sets {strange[0]} to {str(settings[strange[0]])[:60]!r}, which is "
            f"more than W + B·A·alpha/r: {todo}"
        )
    return ""
