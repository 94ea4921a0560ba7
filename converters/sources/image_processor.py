"""The image preprocessing of a Hugging Face folder, as operations of the step ``decode_image``.

``transformers``' own processor is loaded for its settings, so that defaults, old forms of a key and
the class itself mean what they mean to the original. Anything that has no equivalent among the
operations is refused by name: preprocessing that is nearly right is wrong.

It is always loaded with its PIL backend, which this project uses and which needs no torchvision.
The other backend resizes tensors, and differs by a few grey levels at edges.
"""

from typing import Any

from converters.errors import SourceMissing, SourceRefused
from converters.sources.huggingface import HuggingFaceFolder
from converters.sources.image_rules import (
    COLOURS,
    GREY,
    RULES,
    SIDE_LIMIT,
    Operation,
    per_channel,
    plain,
    refused,
)

FILES = ("preprocessor_config.json", "processor_config.json")
_METHODS = (
    "preprocess",
    "_preprocess_image_like_inputs",
    "_prepare_image_like_inputs",
    "_preprocess",
    "process_image",
    "convert_to_rgb",
    "resize",
    "center_crop",
    "rescale",
    "normalize",
)


def open_processor(folder: HuggingFaceFolder) -> object:
    """transformers' own image processor for this folder; SourceMissing or SourceRefused."""
    if "architecture" in folder.config and "pretrained_cfg" in folder.config:
        raise SourceRefused(
            f"{folder.path} is a timm model, whose preprocessing is timm's code and not a file: "
            "write a function that returns timm.create_model(..., checkpoint_path=...) and an "
            "example, and give package.module:function (pixels in, logits out; docs/tensors.md)"
        )
    present = [name for name in FILES if (folder.path / name).is_file()]
    if not present:
        raise SourceMissing(
            f"{folder.path} has no {FILES[0]}, and without it nobody knows how the model sees an "
            "image: copy it from where the model was trained, write it with "
            "AutoImageProcessor.save_pretrained(), or choose a preset with --preprocess (imagenet, "
            "imagenet-bicubic, half or clip; docs/image-classification.md)"
        )
    for name in present:
        if "auto_map" in folder.document(name):
            raise SourceRefused(
                f"{folder.path}/{name} would run its own code (auto_map), which is never allowed: "
                "use a model whose image processor transformers knows"
            )
    import transformers

    processor_class: Any = transformers.AutoImageProcessor
    try:
        return processor_class.from_pretrained(
            folder.path, local_files_only=True, trust_remote_code=False, backend="pil"
        )
    except Exception as error:  # transformers raises many types; all mean: not loadable
        reason = " ".join(str(error).split())[:300]
        classes = [folder.document(name).get("image_processor_type") for name in present]
        raise SourceRefused(
            f"transformers cannot load the image processor of {folder.path}, "
            f"{next(filter(None, classes), 'which names no class')} ({reason}): "
            "it must be one that this version of transformers knows"
        ) from error


def require_no_processor(folder: HuggingFaceFolder) -> None:
    """Raise SourceRefused if the folder already says how its model sees an image."""
    present = [name for name in FILES if (folder.path / name).is_file()]
    if present:
        raise SourceRefused(
            f"{folder.path} has {present[0]}, which says how the model sees an image: omit "
            "--preprocess, or remove the file if it is wrong"
        )


def transform(processor: Any, channels: int = COLOURS) -> dict[str, Any]:
    """``preprocess.json`` for the step: ``height``, ``width`` and ``operations``, and ``channels``
    for a greyscale model.

    SourceRefused names the class or the key that the step cannot reproduce exactly.
    """
    name = type(processor).__name__
    rule = RULES.get(name.removesuffix("Pil"))
    if rule is None:
        _require_plain(processor)
        rule = plain
    try:
        _require_colours(processor, channels)
        operations = rule(processor)
    except (AttributeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise refused(processor, f"its settings are invalid ({error})") from error
    height, width = _final_size(processor, operations)
    if getattr(processor, "do_convert_rgb", False):
        operations = [{"op": "onto_white"}, *operations]
    document = {"height": height, "width": width, "operations": operations}
    if channels == GREY:
        return {**document, "channels": GREY, "operations": [{"op": "grey"}, *operations]}
    return document


def _require_plain(processor: object) -> None:
    """Raise SourceRefused unless the class does exactly what transformers' general PIL processor
    does."""
    from transformers.image_processing_backends import PilBackend

    processor_class = type(processor)
    if not issubclass(processor_class, PilBackend):
        raise refused(processor, "its class is not one of transformers' PIL processors")
    overridden = [
        name for name in _METHODS if getattr(processor_class, name) is not getattr(PilBackend, name)
    ]
    if overridden:
        raise refused(processor, f"its class overrides {', '.join(overridden)}")
    if getattr(processor, "pad_size", None) is not None:
        raise refused(processor, "pad_size is set")


def _require_colours(processor: Any, channels: int) -> None:
    """Require one number, or one for each channel, as mean and deviation; expand it to one for each
    channel."""
    if channels == GREY and getattr(processor, "do_convert_rgb", False):
        raise refused(
            processor,
            "it converts every image to RGB (do_convert_rgb), and the model takes one channel: set "
            "do_convert_rgb to false",
        )
    for key in ("image_mean", "image_std"):
        values = getattr(processor, key, None)
        numbers = per_channel(values, channels)
        if processor.do_normalize and len(numbers) != channels:
            expected = "one number, for grey" if channels == GREY else f"{channels} numbers"
            raise refused(processor, f"{key} does not have {expected}")
        if isinstance(values, int | float):
            setattr(processor, key, numbers)
    if processor.do_normalize and 0 in per_channel(processor.image_std):
        raise refused(processor, "image_std is 0")


def _final_size(processor: object, operations: list[Operation]) -> tuple[int, int]:
    """The size that the operations produce, the same for every image; SourceRefused if it is
    not."""
    sizing = [step for step in operations if step["op"].startswith(("resize", "crop"))]
    last = sizing[-1] if sizing else {}
    if last.get("op") not in ("resize", "crop"):
        raise refused(
            processor,
            "images would keep different sizes, because there is neither do_center_crop nor a size "
            "with height and width",
        )
    height, width = last["height"], last["width"]
    if not (0 < height <= SIDE_LIMIT and 0 < width <= SIDE_LIMIT):
        raise refused(processor, f"the size is {height}x{width}")
    return height, width
