"""Decode images of any format, mode and size, and convert them to uint8 squares."""

from __future__ import annotations

import io
import warnings
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from metafew.errors import UsageError

FITS = ("crop", "stretch")
FORMATS = ("PNG", "JPEG", "PPM", "BMP", "WEBP", "GIF", "TIFF")  # others run external programs, as EPS does


def decode(file: Path | BinaryIO, name: str) -> Image.Image:
    """Decode an image: the first frame of an animation, rotated upright by its EXIF orientation.

    Args:
        file: a file, or a stream positioned at the image's first byte.
        name: the image's name in error messages.

    Raises:
        UsageError: if the file cannot be read, or is not an intact image of at most ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    try:
        content = file.read_bytes() if isinstance(file, Path) else file.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as those about metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            image.load()
            with suppress(Exception):  # a damaged orientation is ignored
                ImageOps.exif_transpose(image, in_place=True)
    except UnidentifiedImageError:
        problem = f"its content is not {', '.join(FORMATS[:-1])} or {FORMATS[-1]}" if content else "it is empty"
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        problem = f"it declares more than {Image.MAX_IMAGE_PIXELS:,} pixels"
    except Exception as error:  # decoders raise errors of any type
        problem = "it is damaged or forbidden: " + " ".join(f"{type(error).__name__}, {error}".split())[:200]
    else:
        if image.mode != "LAB":  # which Pillow cannot convert
            return image
        problem = "its colours are CIELAB, not RGB"
    raise UsageError(f"{name} cannot be read as an image ({problem}): replace it or take it out of the folder")


def to_pixels(image: Image.Image | np.ndarray, channels: int, size: int, fit: str) -> np.ndarray:
    """Convert an image to a square of a given size and number of channels.

    Transparent pixels become white. White is 65535 in 16-bit grey, as in PNG files, and in floating point the smallest
    of 1, 255 and 65535 that no pixel exceeds. Images of another size are resampled by a Lanczos filter.

    Args:
        image: of any size and mode, or uint8 ``(h, w)`` or ``(h, w, 1, 3 or 4)``.
        channels: 1 (grey, weighted as in ITU-R BT.601) or 3 (red, green, blue).
        size: height and width of the result, in pixels.
        fit: ``crop`` takes the largest square in the middle, ``stretch`` resizes the entire image.

    Returns:
        uint8 ``(channels, size, size)``.
    """
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
    if image.mode[0] in "IF":
        image = _to_8_bits(image)
    if fit == "crop":
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    image = image.resize((size, size), Image.Resampling.LANCZOS)  # an exact copy if it has that size
    return np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale values of more than 8 bits to 0..255, because Pillow's own conversion clips them at 255."""
    values = np.nan_to_num(np.asarray(image, np.float32), posinf=0.0, neginf=0.0)
    whites = (1, 255, 65535) if image.mode == "F" else (65535,)
    white = next((white for white in whites if values.max() <= white), 65535)
    return Image.fromarray(np.rint(values.clip(0, white) * (255 / white)).astype(np.uint8))
