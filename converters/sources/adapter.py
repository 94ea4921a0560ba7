"""LoRA adapters: why such a folder is not converted as it is."""

import json
from pathlib import Path

ADAPTER = "adapter_config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def why_not_adapter(folder: Path) -> str:
    """What to do with a folder that has an adapter; "" for one that has none.

    transformers applies an adapter where peft is installed and leaves it out where it is not, so
    that the folder does not say what it answers.
    """
    if not (folder / ADAPTER).is_file():
        return ""
    if any((folder / name).is_file() for name in WEIGHTS):
        return (
            f"{folder} holds weights and {ADAPTER} beside them, which transformers applies only "
            f"where peft is installed: take {ADAPTER} out if the weights are merged already, or "
            "merge them (merge_and_unload) and convert that"
        )
    base = _base(folder / ADAPTER)
    return (
        f"{folder} holds a LoRA adapter alone, which is no model: merge it into {base} and save "
        f"that: PeftModel.from_pretrained(AutoModel...from_pretrained({base!r}), "
        f"{str(folder)!r}).merge_and_unload().save_pretrained(NEW), the tokenizer too, and convert "
        "NEW"
    )


def _base(path: Path) -> str:
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, OSError, AttributeError, RecursionError):
        found = None
    return str(found or "its base")
