"""A LoRA adapter merged into its base: W + B·A·alpha/r for each layer that it adapts, and whatever
it was trained to put in the place of a layer (a new head). Needs no peft.

The merged folder is kept in the cache, and is a model like any other.
"""

import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from converters.cache import content_key, conversion, files_sha256
from converters.errors import SourceRefused
from converters.sources.adapter import ADAPTER, FILES, base_of, is_adapter, settings_of
from converters.sources.huggingface import HuggingFaceFolder, check_weights
from converters.task import ConversionRequest

BASE = "base"  # the option that says where the base is
_LAYER = re.compile(r"(.+)\.lora_(?:embedding_)?([AB])(?:\.default)?(?:\.weight)?")
_IN_PLACE = re.compile(r"\.(modules_to_save|base_layer|original_module)(\.default)?")
# Beside the weights: what says how a text is cut, what the labels are, how vectors are pooled.
_SMALL = ("*.json", "*.txt", "*.model")
_MODULES = ("*/*.json", "*/*.safetensors")  # of sentence-transformers, each in its folder
Weights = Mapping[str, torch.Tensor]


def merged_order(order: ConversionRequest, auto_class: str) -> ConversionRequest:
    """The order on the merged model where its source is an adapter, else the order as it is.

    ``auto_class`` is transformers' for the task. SourceRefused when a base is said for a source
    that is no adapter, and when the two do not fit.
    """
    adapter, said = Path(order.source), order.options.get(BASE, "")
    if not (adapter.is_dir() and is_adapter(adapter)):
        if said:
            raise SourceRefused(f"{order.source} is no LoRA adapter: leave --base out")
        return order
    if not auto_class:
        raise SourceRefused(
            f"{adapter} holds a LoRA adapter of a transformers model: give the --task that such a "
            "model is converted for"
        )
    base = base_of(adapter, said)
    if base is None:  # ``why_not_adapter`` has said so before
        raise SourceRefused(f"the base of {adapter} is not here: say where with --base")
    decides = [*HuggingFaceFolder.open(base).files(), *_small(adapter), _weights_file(adapter)]
    key = content_key(json.dumps(["lora", adapter.name, auto_class, files_sha256(decides)]))
    folder = conversion(
        order.name, key, f"{adapter.name}/config.json",
        lambda target: _merge(adapter, base, auto_class, target / adapter.name),
    )  # fmt: skip
    return replace(order, source=str(folder / adapter.name))


def _merge(adapter: Path, base: Path, auto_class: str, target: Path) -> None:
    import transformers

    target.mkdir()
    for source in (base, adapter):  # the adapter's own tokenizer and labels come first
        for file in _small(source):
            copy = target / file.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
    config = HuggingFaceFolder.open(base).document("config.json")
    if (adapter / "config.json").is_file():
        config = HuggingFaceFolder(adapter, {}).document("config.json")
    for file in HuggingFaceFolder.open(base).weights():
        (target / file.name).symlink_to(file.resolve())
    layers, in_place = _read(adapter)
    kind = getattr(transformers, auto_class)
    model = HuggingFaceFolder(target, config).model(kind, replaced=tuple(in_place))
    apply(model, layers, in_place, settings_of(adapter), str(adapter))
    for file in [*target.glob("*.safetensors*"), *target.glob("*.bin*")]:
        file.unlink()
    model.save_pretrained(target)  # type: ignore[operator]


def apply(
    model: torch.nn.Module,
    layers: Mapping[str, Mapping[str, torch.Tensor]],
    in_place: Weights,
    settings: Mapping[str, Any],
    what: str,
) -> None:
    """Change the weights of ``model``: ``layers`` are A [r, in] and B [out, r] by a module's name,
    ``in_place`` whole weights by theirs. SourceRefused, which names ``what``, when they do not
    fit."""
    modules, state = dict(model.named_modules()), model.state_dict()
    with torch.no_grad():
        for name, pair in layers.items():
            if set(pair) != {"A", "B"} or name not in modules:
                raise _does_not_fit(what, name)
            scaled = _scale(name, int(pair["A"].shape[0]), settings)
            weight = getattr(modules[name], "weight", None)
            delta = _delta(modules[name], pair["A"].float(), pair["B"].float())
            if delta is None or weight is None or delta.shape != weight.shape:
                raise _does_not_fit(what, name)
            weight += scaled * delta
        for name, values in in_place.items():
            if name not in state:
                raise _does_not_fit(what, name)
            if state[name].shape != values.shape:
                raise SourceRefused(
                    f"{what} puts {name} {tuple(values.shape)} in the place of "
                    f"{tuple(state[name].shape)}: where it has other labels than its base, put a "
                    "config.json with them (num_labels, id2label) beside the adapter"
                )
            state[name].copy_(values)


def _does_not_fit(what: str, name: str) -> SourceRefused:
    return SourceRefused(
        f"{what} changes {name}, which its base does not have in that form: give the base that it "
        "was trained on (--base) and the --task, or merge it with peft (merge_and_unload)"
    )


def _scale(name: str, rank: int, settings: Mapping[str, Any]) -> float:
    patterns = dict(settings.get("alpha_pattern") or {})
    found = next((each for each in patterns if re.match(rf"(.*\.)?({each})$", name)), None)
    alpha = float(patterns[found] if found else settings.get("lora_alpha", rank))
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _delta(module: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor | None:
    """B·A as the module holds its weight; None for one of which that is not known, or that the two
    do not fit."""
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
    """A and B of each layer, and the weights that are put in the place of the base's."""
    file = _weights_file(adapter)
    check_weights(file)
    is_safe = file.suffix == ".safetensors"
    held = load_file(file) if is_safe else torch.load(file, map_location="cpu", weights_only=True)
    layers: dict[str, dict[str, torch.Tensor]] = {}
    in_place = {}
    for key, values in held.items():
        name = str(key).removeprefix("base_model.model.")
        found = _LAYER.fullmatch(name)
        if found:
            layers.setdefault(found[1], {})[found[2]] = values
        elif "lora_" in name or "trainable_tokens" in name:
            raise SourceRefused(
                f"{file} holds {key}, which is more than A and B: merge it with peft "
                "(merge_and_unload) and give the result"
            )
        else:
            in_place[_IN_PLACE.sub("", name)] = values.float()
    if not layers and not in_place:
        raise SourceRefused(f"{file} holds no weights: copy the adapter again")
    return layers, in_place


def _weights_file(adapter: Path) -> Path:
    return next(adapter / name for name in FILES if (adapter / name).is_file())


def _small(folder: Path) -> list[Path]:
    patterns = (*_SMALL, *_MODULES) if (folder / "modules.json").is_file() else _SMALL
    found = {file for each in patterns for file in folder.glob(each) if file.is_file()}
    left_out = (ADAPTER, "model.safetensors.index.json", "trainer_state.json")
    return sorted(each for each in found if each.name not in left_out)
