"""How a model sees an image, where its folder does not say it and the user does: ``--preprocess``.

A preset is transformers' own processor with the settings that such models are evaluated with; it
stands in for the file that is missing, for the original as for the pipeline.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from converters.errors import SourceRefused
from converters.sources.image_rules import COLOURS, GREY, SIDE_LIMIT

BILINEAR, BICUBIC = 2, 3
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALVES = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
# The mean and the deviation of MNIST's digits; of models that see grey.
DIGITS = ([0.1307], [0.3081])
FALLBACK_SIDE = 224
Colours = tuple[list[float], list[float]]


def _cropped(side: int, part: float, resample: int, colours: Colours) -> dict[str, Any]:
    """The shorter side to ``side / part``, the middle, and the colours' mean and deviation."""
    return {
        "size": {"shortest_edge": round(side / part)},
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "resample": resample,
        "image_mean": colours[0],
        "image_std": colours[1],
    }


def _squeezed(side: int, colours: Colours) -> dict[str, Any]:
    return {
        "size": {"height": side, "width": side},
        "do_center_crop": False,
        "resample": BILINEAR,
        "image_mean": colours[0],
        "image_std": colours[1],
    }


PRESETS: Mapping[str, Callable[[int], dict[str, Any]]] = {
    # As torchvision evaluates its models.
    "imagenet": lambda side: _cropped(side, 224 / 256, BILINEAR, IMAGENET),
    # As timm does most of its own.
    "imagenet-bicubic": lambda side: _cropped(side, 224 / 256, BICUBIC, IMAGENET),
    # As Google's ViT: squeezed to the square, between -1 and 1.
    "half": lambda side: _squeezed(side, HALVES),
    "clip": lambda side: _cropped(side, 1.0, BICUBIC, CLIP),
}
# The same of models that see grey: between -1 and 1, between 0 and 1, and as MNIST is read.
GREY_PRESETS: Mapping[str, Callable[[int], dict[str, Any]]] = {
    "half": lambda side: _squeezed(side, ([0.5], [0.5])),
    "unit": lambda side: {**_squeezed(side, ([0.0], [1.0])), "do_normalize": False},
    "digits": lambda side: _squeezed(side, DIGITS),
}


def channels_of(config: Mapping[str, Any]) -> int:
    """What a model of this config.json sees of an image: 3 where it does not say. SourceRefused
    for what no image file holds."""
    seen = config.get("vision_config")
    inner = seen if isinstance(seen, Mapping) else {}
    said = config.get("num_channels", inner.get("num_channels", COLOURS))
    if said not in (COLOURS, GREY):
        raise SourceRefused(
            f"the model sees {said!r} channels (num_channels in config.json), and an image file "
            "holds three, or one of grey: convert it as tensors, from a function that returns the "
            "module (docs/tensors.md)"
        )
    return int(said)


def write_preset(said: str, config: Mapping[str, Any], folder: Path) -> None:
    """``folder/preprocessor_config.json`` of ``imagenet``, ``half:384`` and so on; the side is the
    config's ``image_size`` where none is said. SourceRefused lists what there is."""
    import transformers

    grey = channels_of(config) == GREY
    presets = GREY_PRESETS if grey else PRESETS
    found = re.fullmatch(r"([a-z-]+)(?::(\d{1,4}))?", said)
    if not found or found[1] not in presets:
        seen = " of a model that sees grey" if grey else ""
        raise SourceRefused(
            f"--preprocess {said}: say {', '.join(presets)}{seen}, with a side in pixels where it "
            f"is not the model's own ({next(iter(presets))}:384)"
        )
    own = config.get("image_size")
    if isinstance(own, list) and len(set(own)) == 1:  # [28, 28]
        own = own[0]
    side = int(found[2] or (own if isinstance(own, int) else FALLBACK_SIDE))
    if not 0 < side <= SIDE_LIMIT:
        raise SourceRefused(f"--preprocess {said}: a side is 1 to {SIDE_LIMIT} pixels")
    settings = {"do_resize": True, "do_rescale": True, "do_normalize": True}
    reader: Any = transformers.BitImageProcessorPil
    chosen = {**settings, "do_convert_rgb": not grey, **presets[found[1]](side)}
    reader(**chosen).save_pretrained(folder)
