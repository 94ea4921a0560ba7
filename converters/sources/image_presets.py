"""How a model sees an image when its folder does not say so and the user does: ``--preprocess``.

A preset is transformers' own processor with the settings that such models are evaluated with; it
replaces the missing file, for the original and for the pipeline.
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
# The mean and standard deviation of MNIST's digits; for models that take greyscale.
DIGITS = ([0.1307], [0.3081])
FALLBACK_SIDE = 224
Normalization = tuple[list[float], list[float]]


def _cropped(
    side: int, part: float, resample: int, normalization: Normalization
) -> dict[str, object]:
    """Resize the shorter side to ``side / part``, crop the middle, normalise by mean and
    deviation."""
    return {
        "size": {"shortest_edge": round(side / part)},
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "resample": resample,
        "image_mean": normalization[0],
        "image_std": normalization[1],
    }


def _stretched(side: int, normalization: Normalization) -> dict[str, object]:
    return {
        "size": {"height": side, "width": side},
        "do_center_crop": False,
        "resample": BILINEAR,
        "image_mean": normalization[0],
        "image_std": normalization[1],
    }


PRESETS: Mapping[str, Callable[[int], dict[str, Any]]] = {
    # As torchvision evaluates its models.
    "imagenet": lambda side: _cropped(side, 224 / 256, BILINEAR, IMAGENET),
    # As timm evaluates most of its own.
    "imagenet-bicubic": lambda side: _cropped(side, 224 / 256, BICUBIC, IMAGENET),
    # As Google's ViT: stretched to the square, values between -1 and 1.
    "half": lambda side: _stretched(side, HALVES),
    "clip": lambda side: _cropped(side, 1.0, BICUBIC, CLIP),
}
# The same for greyscale models: between -1 and 1, between 0 and 1, and as MNIST is read.
GREY_PRESETS: Mapping[str, Callable[[int], dict[str, Any]]] = {
    "half": lambda side: _stretched(side, ([0.5], [0.5])),
    "unit": lambda side: {**_stretched(side, ([0.0], [1.0])), "do_normalize": False},
    "digits": lambda side: _stretched(side, DIGITS),
}


def channels_of(config: Mapping[str, object]) -> int:
    """How many channels a model with this config.json takes: 3 if it does not say. SourceRefused
    for a number that no image file holds."""
    vision = config.get("vision_config")
    vision_settings = vision if isinstance(vision, Mapping) else {}
    channels = config.get("num_channels", vision_settings.get("num_channels", COLOURS))
    if channels not in (COLOURS, GREY):
        raise SourceRefused(
            f"the model takes {channels!r} channels (num_channels in config.json), and an image "
            "file holds three, or one if it is greyscale: convert it as tensors, from a function "
            "that returns the module (docs/tensors.md)"
        )
    return int(channels)


def write_preset(preset: str, config: Mapping[str, Any], folder: Path) -> None:
    """Write ``folder/preprocessor_config.json`` for ``imagenet``, ``half:384`` and so on; the side
    is the config's ``image_size`` if ``preset`` gives none. SourceRefused lists the presets."""
    import transformers

    grey = channels_of(config) == GREY
    presets = GREY_PRESETS if grey else PRESETS
    match = re.fullmatch(r"([a-z-]+)(?::(\d{1,4}))?", preset)
    if not match or match[1] not in presets:
        scope = " for a greyscale model" if grey else ""
        raise SourceRefused(
            f"--preprocess {preset}: use {', '.join(presets)}{scope}, with a side in pixels if it "
            f"is not the model's own ({next(iter(presets))}:384)"
        )
    image_size = config.get("image_size")
    if isinstance(image_size, list) and len(set(image_size)) == 1:  # [28, 28]
        image_size = image_size[0]
    side = int(match[2] or (image_size if isinstance(image_size, int) else FALLBACK_SIDE))
    if not 0 < side <= SIDE_LIMIT:
        raise SourceRefused(f"--preprocess {preset}: the side must be 1 to {SIDE_LIMIT} pixels")
    settings: dict[str, Any] = {"do_resize": True, "do_rescale": True, "do_normalize": True}
    processor_class: Any = transformers.BitImageProcessorPil
    # The file is opened as RGB already. True would also paint a PNG's transparent colour white,
    # which none of the tools that these presets stand for does.
    settings |= {"do_convert_rgb": False, **presets[match[1]](side)}
    processor_class(**settings).save_pretrained(folder)
