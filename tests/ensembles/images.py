"""Pictures for tests: small ones of every kind, and the bad ones that people send."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

SIZE = (96, 64)


def colours(size: tuple[int, int] = SIZE) -> Image.Image:
    """A smooth image that no turn and no context of channels leaves as it is."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, (x + 2 * y) / 3], axis=-1).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, rows: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG with this header, whatever its data are."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def png_of_16_bits(image: Image.Image) -> bytes:
    """The image's RGB with 16 bits a channel, the low bytes noise; Pillow cannot write it."""
    high = np.asarray(image)
    low = np.random.default_rng(0).integers(0, 256, high.shape, dtype=np.uint8)
    rows = np.stack([high, low], axis=-1).reshape(image.height, -1)
    scanlines = b"".join(b"\0" + row.tobytes() for row in rows)
    return png(*image.size, scanlines, depth=16)


def animated(kind: str) -> bytes:
    image = colours()
    return encoded(image, kind, save_all=True, append_images=[image.rotate(180)])


def bad_images() -> dict[str, tuple[bytes, str]]:
    """Name -> the bytes, and what the error must say."""
    good = {kind: encoded(colours(), kind) for kind in ("JPEG", "PNG", "WEBP")}
    not_one = "is not a whole JPEG, PNG or WebP file"
    cut_off = "is cut off or damaged"
    too_many = "has more than 25 million pixels: send a smaller one"
    return {
        "empty": (b"", "is empty: send the bytes"),
        "text called .jpg": (b"this is no image\n" * 9, not_one),
        "gif": (encoded(colours(), "GIF"), not_one),
        "tiff": (encoded(colours(), "TIFF"), not_one),
        "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", not_one),
        "svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', not_one),
        "truncated jpeg": (good["JPEG"][:-200], cut_off),
        "truncated png": (good["PNG"][:-100], cut_off),
        "truncated webp": (good["WEBP"][:-20], cut_off),
        "header only": (good["JPEG"][:20], not_one),
        "1x1": (encoded(colours((1, 1)), "PNG"), "is 1x1 pixels: send one of at least 16"),
        "strip": (encoded(colours((16, 400)), "PNG"), "is 16x400 pixels, a strip"),
        "animated png": (animated("PNG"), "is animated: send one frame"),
        "animated webp": (animated("WEBP"), "is animated: send one frame"),
        "50 megapixels": (encoded(Image.new("L", (8660, 5774)), "JPEG"), too_many),
        "bomb": (png(30_000, 30_000, bytes(1000)), too_many),
        "webp bomb": (encoded(Image.new("RGB", (16383, 16383)), "WEBP", lossless=True), too_many),
        "too many bytes": (good["JPEG"] + bytes(17 << 20), "bytes: send at most 16777216"),
    }
