"""Decode pictures and prepare them for the engine (a step that runs inside Triton).

Input ``image`` BYTES [n, 1], each a whole JPEG, PNG or WebP file; output ``pixels`` FP32
[n, 3, 224, 224], RGB, (value - 127) / 128.

The transform is the model's own for evaluation: upright by EXIF, RGB, shorter side to 256 by
antialiased bicubic interpolation, the middle 224 x 224. As there, alpha is dropped, an embedded
colour profile is not applied, and CMYK is converted without one.

A picture is refused by its header, before memory is taken for its pixels: by its format, number of
frames, number of pixels or shape. Each limit is below, and its error says what to send instead.
"""

import io
import warnings
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

try:  # exists only inside Triton's Python stub
    import triton_python_backend_utils as pb_utils
except ImportError:
    pb_utils = None

# The gateway shows a client only texts that begin with this marker.
INVALID = "[tidegate:invalid_input] "
FORMATS = ("JPEG", "PNG", "WEBP")
PICTURE_LIMIT_BYTES = 16 << 20
# Above the 24.5 megapixels of today's phones. Measured: decoding takes 8 bytes a pixel (a JPEG that
# is turned) to 17 (a WebP), so at most 430 MB: an instance decodes one picture at a time.
PIXEL_LIMIT = 25_000_000
SHORTEST_SIDE = 16
# The model sees the middle square only: of a longer strip less than a twentieth.
LONGEST_TO_SHORTEST = 20

RESIZED, CROPPED = 256, 224
MEAN, DEVIATION = np.float32(127), np.float32(128)
ORIENTATION_TAG = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class InvalidPicture(ValueError):
    """The client's picture cannot be used; the message says what to do."""


def prepare(picture: bytes) -> np.ndarray:
    """Pixels FP32 [3, 224, 224] of one picture; InvalidPicture for one that cannot be used."""
    # One name throughout: each stage frees the one before it.
    image = _opened(picture)
    _check(image)
    _load(image)
    turn = _turn(image)
    image = _rgb(image)
    if turn is not None:
        image = image.transpose(turn)
    small = np.asarray(_middle(image), dtype=np.float32)
    return ((small - MEAN) / DEVIATION).transpose(2, 0, 1)


def _opened(picture: bytes) -> Image.Image:
    """The picture with only its header read."""
    if not picture:
        raise InvalidPicture("is empty: send the bytes of a JPEG, PNG or WebP file")
    if len(picture) > PICTURE_LIMIT_BYTES:
        raise InvalidPicture(f"has {len(picture)} bytes: send at most {PICTURE_LIMIT_BYTES}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(picture), formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _too_many_pixels() from None
    except UnidentifiedImageError:
        raise InvalidPicture(
            "is not a whole JPEG, PNG or WebP file, whatever its name says: convert it to one"
        ) from None
    except Exception:  # Pillow raises many kinds for a header that is broken
        raise _broken() from None


def _check(image: Image.Image) -> None:
    width, height = image.size
    shorter, longer = sorted(image.size)
    if width * height > PIXEL_LIMIT:
        raise _too_many_pixels()
    # A phone's JPEG may carry further pictures (MPO); the first is the photo.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise InvalidPicture("is animated: send one frame of it as a still picture")
    if shorter < SHORTEST_SIDE:
        raise InvalidPicture(
            f"is {width}x{height} pixels: send one of at least {SHORTEST_SIDE} on each side"
        )
    if longer > LONGEST_TO_SHORTEST * shorter:
        raise InvalidPicture(
            f"is {width}x{height} pixels, a strip of which the model would see only the middle: "
            f"crop it so that one side is at most {LONGEST_TO_SHORTEST} times the other"
        )


def _load(image: Image.Image) -> None:
    """Decode the pixels; this is where a file that is cut off shows."""
    try:
        image.load()
    except MemoryError:
        raise
    except Exception:  # Pillow raises many kinds for data that is broken
        raise _broken() from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        # 16-bit grey: keep the high byte, as is done for 16-bit colour. convert() would clip.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How to put the picture upright, read once its pixels are loaded: PNG may end with EXIF."""
    try:
        return UPRIGHT.get(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # broken EXIF around a good picture, which viewers show as it lies
        return None


def _middle(image: Image.Image) -> Image.Image:
    shorter = min(image.size)
    width, height = (int(RESIZED * side / shorter) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - CROPPED) // 2, (height - CROPPED) // 2
    return resized.crop((left, top, left + CROPPED, top + CROPPED))


def _too_many_pixels() -> InvalidPicture:
    return InvalidPicture(
        f"has more than {PIXEL_LIMIT // 10**6} million pixels: send a smaller one "
        f"(the model looks at {CROPPED}x{CROPPED})"
    )


def _broken() -> InvalidPicture:
    return InvalidPicture("is cut off or damaged: it cannot be decoded, send the whole file")


class TritonPythonModel:
    """Triton's entry point: requests in, pixels out. A bad picture fails its own request only."""

    def initialize(self, args: dict[str, str]) -> None:
        Image.MAX_IMAGE_PIXELS = PIXEL_LIMIT

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        pictures = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1)
        pixels = np.empty((len(pictures), 3, CROPPED, CROPPED), dtype=np.float32)
        for index, picture in enumerate(pictures):
            try:
                pixels[index] = prepare(picture)
            except InvalidPicture as error:
                text = f"{INVALID}picture {index} {error}"
                failure = pb_utils.TritonError(text, pb_utils.TritonError.INVALID_ARG)
                return pb_utils.InferenceResponse(error=failure)
        return pb_utils.InferenceResponse([pb_utils.Tensor("pixels", pixels)])
