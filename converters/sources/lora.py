"""A LoRA adapter merged into its base: W + B·A·alpha/r for each layer that it adapts, plus the
layers that it replaces (a new head). Needs no peft.

The merged folder is cached, and is a model like any other.
"""

import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from converters.cache import content_key, conversion, files_sha256
from converters.errors import SourceRefused
from converters.sources.adapter import ADAPTER, FILES, base_of, is_adapter, settings_of
from converters.sources.huggingface import (
    CHAT_TEMPLATES,
    SMALL_FILES,
    HuggingFaceFolder,
    check_weights,
)
from converters.task import ConversionRequest

BASE = "base"  # the option with the base model's folder
_LAYER = re.compile(r"(.+)\.lora_(?:embedding_)?([AB])(?:\.default)?(?:\.weight)?")
_REPLACED_MODULE = re.compile(r"\.(modules_to_save|base_layer|original_module)(\.default)?")
# sentence-transformers' modules, each in its folder.
_MODULE_FILES = ("*/*.json", "*/*.safetensors")
Weights = Mapping[str, torch.Tensor]


def merged_request(request: ConversionRequest, auto_class: str) -> ConversionRequest:
    """The request with the merged model as its source if the source is an adapter, else the request
    unchanged.

    ``auto_class`` is transformers' class for the task. SourceRefused if a base is given for a
    source that is not an adapter, and if adapter and base do not fit.
    """
    adapter, base_option = Path(request.source), request.options.get(BASE, "")
    if not (adapter.is_dir() and is_adapter(adapter)):
        if base_option:
            raise SourceRefused(f"{request.source} is not a LoRA adapter: omit --base")
        return request
    if not auto_class:
        raise SourceRefused(
            f"{adapter} holds a LoRA adapter of a transformers model: give the --task of that model"
        )
    base = base_of(adapter, base_option)
    if base is None:  # ``why_not_adapter`` has refused this already
        raise SourceRefused(f"the base of {adapter} is not here: give its folder with --base")
    inputs = [*HuggingFaceFolder.open(base).files(), *_small_files(adapter), _weights_file(adapter)]
    settings = ["lora", adapter.name, auto_class, files_sha256(inputs)]
    key = content_key(json.dumps(settings), __name__)
    folder = conversion(
        request.name, key,
        lambda target: _merge(adapter, base, auto_class, target / adapter.name),
    )  # fmt: skip
    return replace(request, source=str(folder / adapter.name))


def _merge(adapter: Path, base: Path, auto_class: str, target: Path) -> None:
    import transformers

    target.mkdir()
    own_tokenizer = (adapter / "tokenizer_config.json").is_file()
    for source in (base, adapter):  # the adapter's tokenizer and labels override the base's
        # A tokenizer has its own chat templates, or none: a file with the base's would override one
        # that is written in the adapter's tokenizer_config.json.
        is_replaced = source == base and own_tokenizer
        for file in _small_files(source, without=CHAT_TEMPLATES if is_replaced else ()):
            copy = target / file.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
    config = HuggingFaceFolder.open(base).document("config.json")
    if (adapter / "config.json").is_file():
        config = HuggingFaceFolder(adapter, {}).document("config.json")
    for file in HuggingFaceFolder.open(base).weights():
        (target / file.name).symlink_to(file.resolve())
    layers, replacements = _read(adapter)
    model_class = getattr(transformers, auto_class)
    model = HuggingFaceFolder(target, config).model(model_class, replaced=tuple(replacements))
    apply(model, layers, replacements, settings_of(adapter), str(adapter))
    for file in [*target.glob("*.safetensors*"), *target.glob("*.bin*")]:
        file.unlink()
    model.save_pretrained(target)  # type: ignore[operator]


def apply(
    model: torch.nn.Module,
    layers: Mapping[str, Mapping[str, torch.Tensor]],
    replacements: Weights,
    settings: Mapping[str, object],
    adapter_name: str,
) -> None:
    """Change the weights of ``model`` in place: ``layers`` are A [r, in] and B [out, r] by module
    name, ``replacements`` whole weights by weight name. SourceRefused, which names the adapter, if
    they do not fit."""
    modules, state = dict(model.named_modules()), model.state_dict()
    with torch.no_grad():
        for name, pair in layers.items():
            if set(pair) != {"A", "B"} or name not in modules:
                raise _does_not_fit(adapter_name, name)
            scale = _scale(name, int(pair["A"].shape[0]), settings)
            weight = getattr(modules[name], "weight", None)
            delta = _delta(modules[name], pair["A"].float(), pair["B"].float())
            if delta is None or weight is None or delta.shape != weight.shape:
                raise _does_not_fit(adapter_name, name)
            weight += scale * delta
        for name, values in replacements.items():
            if name not in state:
                raise _does_not_fit(adapter_name, name)
            if state[name].shape != values.shape:
                raise SourceRefused(
                    f"{adapter_name} replaces {name} {tuple(state[name].shape)} with "
                    f"{tuple(values.shape)}: if it has other labels than its base, put a "
                    "config.json with them (num_labels, id2label) beside the adapter"
                )
            state[name].copy_(values)


def _does_not_fit(adapter_name: str, name: str) -> SourceRefused:
    return SourceRefused(
        f"{adapter_name} changes {name}, which its base does not have in that shape: give the base "
        "that it was trained on (--base) and the --task, or merge it with peft (merge_and_unload)"
    )


def _scale(name: str, rank: int, settings: Mapping[str, Any]) -> float:
    patterns = dict(settings.get("alpha_pattern") or {})
    pattern = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", name)), None)
    alpha = float(patterns[pattern] if pattern else settings.get("lora_alpha", rank))
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _delta(module: object, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor | None:
    """B·A in the layout of the module's weight; None for a module type without a known layout, or
    if A and B do not fit."""
    from transformers.pytorch_utils import Conv1D

    try:
        if isinstance(module, torch.nn.Embedding):
            return (b @ a).T
        if isinstance(module, torch.nn.Conv2d) and module.groups == 1:
            return torch.einsum("or,rikl->oikl", b[:, :, 0, 0], a)
        if isinstance(module, Conv1D):
            return (b @ a).T
        return b @ a if isinstance(module, torch.nn.Linear) else None
    except (RuntimeError, IndexError):
        return None


def _read(adapter: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """A and B of each layer, and the weights that replace the base's."""
    file = _weights_file(adapter)
    check_weights(file)
    is_safe = file.suffix == ".safetensors"
    tensors = (
        load_file(file) if is_safe else torch.load(file, map_location="cpu", weights_only=True)
    )
    layers: dict[str, dict[str, torch.Tensor]] = {}
    replacements = {}
    for key, values in tensors.items():
        name = str(key).removeprefix("base_model.model.")
        match = _LAYER.fullmatch(name)
        if match:
            layers.setdefault(match[1], {})[match[2]] = values
        elif "lora_" in name or "trainable_tokens" in name:
            raise SourceRefused(
                f"{file} holds {key}, which is more than A and B: merge it with peft "
                "(merge_and_unload) and give the result"
            )
        else:
            replacements[_REPLACED_MODULE.sub("", name)] = values.float()
    if not layers and not replacements:
        raise SourceRefused(f"{file} holds no weights: copy the adapter again")
    return layers, replacements


def _weights_file(adapter: Path) -> Path:
    return next(adapter / name for name in FILES if (adapter / name).is_file())


def _small_files(folder: Path, without: Sequence[str] = ()) -> list[Path]:
    """What defines the model beside its weights, but for what the patterns ``without`` name."""
    patterns = {*SMALL_FILES, *(_MODULE_FILES if (folder / "modules.json").is_file() else ())}
    files = {
        file
        for pattern in patterns.difference(without)
        for file in folder.glob(pattern)
        if file.is_file()
    }
    excluded = (ADAPTER, "model.safetensors.index.json", "trainer_state.json")
    return sorted(file for file in files if file.name not in excluded)
