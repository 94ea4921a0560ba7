"""Images for tests: small ones of every kind, and the bad ones that people send."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

SIZE = (96, 64)


def colours(size: tuple[int, int] = SIZE) -> Image.Image:
    """A smooth image that every rotation, flip and exchange of channels changes."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, (x + 2 * y) / 3], axis=-1).astype(np.uint8))


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def png(width: int, height: int, rows: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG with this header, whatever its data is."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def png_of_16_bits(image: Image.Image) -> bytes:
    """The image's RGB with 16 bits per channel, the low bytes noise; Pillow cannot write it."""
    high = np.asarray(image)
    low = np.random.default_rng(0).integers(0, 256, high.shape, dtype=np.uint8)
    rows = np.stack([high, low], axis=-1).reshape(image.height, -1)
    scanlines = b"".join(b"\0" + row.tobytes() for row in rows)
    return png(*image.size, scanlines, depth=16)


def webp(width: int, height: int) -> bytes:
    """A lossless WebP of one colour: its pixels take no bits, so a small one is one of any size."""
    data = encoded(Image.new("RGB", (8, 8)), "WEBP", lossless=True)
    size = struct.pack("<I", (width - 1) | (height - 1) << 14)
    start = data.index(b"VP8L") + 9  # the chunk's name and size, and the signature of one byte
    return data[:start] + size + data[start + 4 :]


def animated(file_format: str) -> bytes:
    image = colours()
    return encoded(image, file_format, save_all=True, append_images=[image.rotate(180)])


def bad_images() -> dict[str, tuple[bytes, str]]:
    """Name -> the bytes, and what the error must say."""
    good = {name: encoded(colours(), name) for name in ("JPEG", "PNG", "WEBP")}
    unknown = "is not a whole JPEG, PNG or WebP file"
    cut_off = "is cut off or damaged"
    too_many = "has more than 25 million pixels: send a smaller one"
    return {
        "empty": (b"", "is empty: send the bytes"),
        "text called .jpg": (b"not an image at all\n" * 9, unknown),
        "gif": (encoded(colours(), "GIF"), unknown),
        "tiff": (encoded(colours(), "TIFF"), unknown),
        "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", unknown),
        "svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', unknown),
        "truncated jpeg": (good["JPEG"][:-200], cut_off),
        "truncated png": (good["PNG"][:-100], cut_off),
        "truncated webp": (good["WEBP"][:-20], cut_off),
        "header only": (good["JPEG"][:20], unknown),
        "1x1": (encoded(colours((1, 1)), "PNG"), "is 1x1 pixels: send one of at least 16"),
        "strip": (encoded(colours((16, 400)), "PNG"), "is 16x400 pixels, a strip"),
        "animated png": (animated("PNG"), "is animated: send one frame"),
        "animated webp": (animated("WEBP"), "is animated: send one frame"),
        "50 megapixels": (encoded(Image.new("L", (8660, 5774)), "JPEG"), too_many),
        "bomb": (png(30_000, 30_000, bytes(1000)), too_many),
        "webp bomb": (webp(16383, 16383), too_many),
        "too many bytes": (good["JPEG"] + bytes(17 << 20), "bytes: send at most 16777216"),
    }
