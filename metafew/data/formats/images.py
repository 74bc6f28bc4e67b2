"""Images of whatever format, mode and size: decoded with a sentence for what is broken, and made squares of bytes."""

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
FORMATS = ("PNG", "JPEG", "PPM", "BMP", "WEBP", "GIF", "TIFF")  # others start programs, as EPS does


def decode(file: Path | BinaryIO, name: str) -> Image.Image:
    """Decode an image: the first frame of an animation, upright as its EXIF orientation tells.

    Args:
        file: A file, or a stream at the image's first byte.
        name: What a sentence calls it.

    Raises:
        UsageError: The file cannot be read, or is no whole image of at most `PIL.Image.MAX_IMAGE_PIXELS` pixels.
    """
    try:
        content = file.read_bytes() if isinstance(file, Path) else file.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            image.load()
            with suppress(Exception):  # an orientation that cannot be read is none
                ImageOps.exif_transpose(image, in_place=True)
    except UnidentifiedImageError:
        problem = f"its content is not {', '.join(FORMATS[:-1])} or {FORMATS[-1]}" if content else "it is empty"
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        problem = f"it claims more than {Image.MAX_IMAGE_PIXELS:,} pixels"
    except Exception as error:  # decoders meet damage with errors of every kind
        problem = "it is damaged or forbidden: " + " ".join(f"{type(error).__name__}, {error}".split())[:200]
    else:
        if image.mode != "LAB":  # which Pillow does not convert
            return image
        problem = "its colours are CIELAB, not RGB"
    raise UsageError(f"{name} cannot be read as an image ({problem}): replace it or take it out of the folder")


def to_pixels(image: Image.Image | np.ndarray, channels: int, size: int, fit: str) -> np.ndarray:
    """Bring an image to one size and number of channels.

    What is transparent becomes white. Grey of 16 bits has white at 65535, as in PNG files; floating-point numbers have
    it at 1, 255 or 65535, the first that none of them exceeds. An image that has the wanted size is not resampled,
    others are by Lanczos' kernel.

    Args:
        image: Of any size and mode, or uint8 of shape (h, w) or (h, w, 1, 3 or 4).
        channels: 1 (grey, weighted as in ITU-R BT.601) or 3 (red, green, blue).
        size: Height and width of the result, in pixels.
        fit: 'crop' takes the largest square in the middle, 'stretch' takes all of the image.

    Returns:
        uint8 of shape (channels, size, size).
    """
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
    if image.mode[0] in "IF":
        image = _to_bytes(image)
    if fit == "crop":
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    image = image.resize((size, size), Image.Resampling.LANCZOS)  # of that size already: an exact copy
    return np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)


def _to_bytes(image: Image.Image) -> Image.Image:
    """Scale numbers of more than 8 bits to 8: Pillow's own conversion cuts them off at 255."""
    numbers = np.nan_to_num(np.asarray(image, np.float32), posinf=0.0, neginf=0.0)
    whites = (1, 255, 65535) if image.mode == "F" else (65535,)
    white = next((white for white in whites if numbers.max() <= white), 65535)
    return Image.fromarray(np.rint(numbers.clip(0, white) * (255 / white)).astype(np.uint8))
