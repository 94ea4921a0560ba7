"""What each of transformers' image processors does, as operations of the step ``decode_image``.

One function per class, each written from the class's own code (transformers 5) and compared with
it, image by image, in tests/converters/sources/test_image_processors.py.
"""

from collections.abc import Callable, Mapping
from typing import Any

from converters.errors import SourceRefused

# EfficientNet-B7 has 600. The pixels of one batch then take 70 MB in shared memory.
SIDE_LIMIT = 640
# A file holds RGB or grey: no image file has other channels (infrared, depth).
COLOURS, GREY = 3, 1
# Below this edge ConvNeXt crops; from it on it stretches.
CONVNEXT_STRETCHES_FROM = 384
FILTERS = range(6)  # Pillow's numbers: nearest, Lanczos, bilinear, bicubic, box, Hamming

Operation = dict[str, Any]


def refused(processor: Any, reason: str) -> SourceRefused:
    """The error for settings that have no equivalent among the operations."""
    supported = ", ".join(sorted(RULES))
    return SourceRefused(
        f"the preprocessing of {type(processor).__name__} cannot be reproduced exactly: {reason}. "
        f"Supported are the plain processors (ViT, DeiT, CLIP, BiT, ...) and {supported}, with a "
        f"fixed size of at most {SIDE_LIMIT}"
    )


def per_channel(values: Any, channels: int = COLOURS) -> list[float]:
    """One number for each channel, from a single number or a list; [] for None. ValueError if they
    are not numbers."""
    if isinstance(values, list | tuple):
        try:
            return [float(value) for value in values]
        except (TypeError, ValueError) as error:
            raise ValueError(f"image_mean and image_std must be numbers: {error}") from error
    return [] if values is None else [float(values)] * channels


def plain(processor: object) -> list[Operation]:
    """The operations of a class that overrides nothing."""
    return [*_resize(processor), *_center_crop(processor), *_values(processor)]


def _resize(processor: Any) -> list[Operation]:
    if not processor.do_resize:
        return []
    size = processor.size
    if size.height and size.width:
        return [_resize_to(processor, size.height, size.width)]
    if size.shortest_edge and not size.longest_edge:
        return [_resize_shorter(processor, size.shortest_edge)]
    raise refused(processor, f"size is {dict(size)}")


def _resize_to(processor: Any, height: int, width: int) -> Operation:
    size = {"height": int(height), "width": int(width)}
    return {"op": "resize", **size, "resample": _filter(processor)}


def _resize_shorter(processor: Any, edge: int) -> Operation:
    if not 0 < edge <= 2 * SIDE_LIMIT:
        raise refused(processor, f"the shorter side would be {edge} pixels")
    return {"op": "resize_shorter", "edge": int(edge), "resample": _filter(processor)}


def _filter(processor: Any) -> int:
    if processor.resample not in FILTERS:
        raise refused(processor, f"resample is {processor.resample!r}")
    return int(processor.resample)


def _center_crop(processor: Any) -> list[Operation]:
    if not processor.do_center_crop:
        return []
    size = processor.crop_size
    if not (size and size.height and size.width):
        raise refused(processor, f"crop_size is {dict(size) if size else None}")
    return [{"op": "crop", "height": int(size.height), "width": int(size.width)}]


def _values(processor: Any) -> list[Operation]:
    return [*_rescale(processor), *_normalize(processor)]


def _rescale(processor: Any, offset: float = 0.0) -> list[Operation]:
    if not processor.do_rescale:
        return []
    return [{"op": "rescale", "factor": float(processor.rescale_factor), "offset": offset}]


def _normalize(processor: Any) -> list[Operation]:
    if not processor.do_normalize:
        return []
    mean, std = per_channel(processor.image_mean), per_channel(processor.image_std)
    return [{"op": "normalize", "mean": mean, "std": std}]


def _convnext(processor: Any) -> list[Operation]:
    """Below 384, resize the shorter side to edge / crop_pct and crop the middle; from 384 on,
    stretch to a square."""
    sizing: list[Operation] = []
    if processor.do_resize:
        edge = processor.size.shortest_edge
        if not edge:
            raise refused(processor, f"size is {dict(processor.size)}, without shortest_edge")
        sizing = [_resize_to(processor, edge, edge)]
        if edge < CONVNEXT_STRETCHES_FROM:
            resize = _resize_shorter(processor, int(edge / processor.crop_pct))
            sizing = [resize, {"op": "crop", "height": edge, "width": edge}]
    return [*sizing, *_center_crop(processor), *_values(processor)]


def _poolformer(processor: Any) -> list[Operation]:
    """Resize everything to 1 / crop_pct of the configured size."""
    size, crop_pct = processor.size, processor.crop_pct
    sizing = _resize(processor)
    if sizing and crop_pct:
        edge = size.shortest_edge or (size.height if size.height == size.width else None)
        if edge:
            sizing = [_resize_shorter(processor, int(edge / crop_pct))]
        else:
            sizing = [
                _resize_to(processor, int(size.height / crop_pct), int(size.width / crop_pct))
            ]
    return [*sizing, *_center_crop(processor), *_values(processor)]


def _levit(processor: Any) -> list[Operation]:
    sizing = _resize(processor)
    if sizing and processor.size.shortest_edge:
        sizing = [_resize_shorter(processor, int((256 / 224) * processor.size.shortest_edge))]
    return [*sizing, *_center_crop(processor), *_values(processor)]


def _efficientnet(processor: Any) -> list[Operation]:
    """``include_top`` divides by the standard deviation a second time."""
    offset = -1.0 if processor.rescale_offset else 0.0
    values = [*_rescale(processor, offset), *_normalize(processor)]
    if processor.include_top:
        std = per_channel(processor.image_std)
        values.append({"op": "normalize", "mean": [0.0] * len(std), "std": std})
    return [*_resize(processor), *_center_crop(processor), *values]


def _mobilevit(processor: Any) -> list[Operation]:
    """BGR, and never normalised, whatever ``do_normalize`` says."""
    flipped: list[Operation] = [{"op": "flip"}] if processor.do_flip_channel_order else []
    return [*_resize(processor), *_center_crop(processor), *_rescale(processor), *flipped]


def _perceiver(processor: Any) -> list[Operation]:
    """Crop before resizing, by the ratio of ``size`` to ``crop_size``."""
    cropped: list[Operation] = []
    if processor.do_center_crop:
        size, crop_size = processor.size, processor.crop_size
        ratios = {"height": size.height / crop_size.height, "width": size.width / crop_size.width}
        cropped = [{"op": "crop_part", **ratios}]
    return [*cropped, *_resize(processor), *_values(processor)]


def _uncropped(processor: object) -> list[Operation]:
    return [*_resize(processor), *_values(processor)]


# Classes that override methods; any other class is tried with the general processor's rule.
RULES: Mapping[str, Callable[[Any], list[Operation]]] = {
    "BeitImageProcessor": plain,
    "ConvNextImageProcessor": _convnext,
    "EfficientNetImageProcessor": _efficientnet,
    "LevitImageProcessor": _levit,
    "MobileNetV2ImageProcessor": plain,
    "MobileViTImageProcessor": _mobilevit,
    "PerceiverImageProcessor": _perceiver,
    "PoolFormerImageProcessor": _poolformer,
    "SegformerImageProcessor": _uncropped,
}
