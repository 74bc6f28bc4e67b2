"""Decode images of any format, mode and size, and determine their properties."""

from __future__ import annotations

import io
import warnings
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from metafew.data.formats.damage import UnreadableImages
from metafew.errors import UsageError

FORMATS = ("PNG", "JPEG", "PPM", "BMP", "WEBP", "GIF", "TIFF")  # other formats, such as EPS, run external programs
UPPER_BYTES = "upper bytes"
"""The entry in ``info`` of 16-bit colour images, of which Pillow decodes the upper 8 bits."""


def decode(file: Path | IO[bytes], name: str) -> Image.Image:
    """Decode an image: the first frame of an animation, rotated upright by its EXIF orientation.

    Args:
        file: a file, or a stream positioned at the first byte of the image.
        name: the name of the image in error messages.

    Raises:
        UnreadableImages: if the file cannot be read, or is not an intact image of at most
            ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    try:
        content = file.read_bytes() if isinstance(file, Path) else file.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as those about metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            if image.mode[0] != "I" and any(";16" in str(tile.args) for tile in image.tile):
                image.info[UPPER_BYTES] = True
            image.load()
            with suppress(Exception):  # a damaged orientation is ignored
                ImageOps.exif_transpose(image, in_place=True)
    except UnidentifiedImageError:
        kinds = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        problem = f"its content is not {kinds}, or in a form that Pillow cannot read" if content else "it is empty"
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        problem = f"it declares more than {Image.MAX_IMAGE_PIXELS:,} pixels"
    except Exception as error:  # decoders raise errors of any type
        problem = "it is damaged or forbidden: " + " ".join(f"{type(error).__name__}, {error}".split())[:200]
    else:
        if image.mode != "LAB":  # which Pillow cannot convert
            return image
        problem = "its colours are CIELAB, not RGB"
    raise UnreadableImages([(name, problem)], "folder" if isinstance(file, Path) else "file")


def as_image(image: Image.Image | np.ndarray) -> Image.Image:
    """Return the image in an array, or the image itself, rotated upright by its EXIF orientation.

    Raises:
        UsageError: if the array has another shape or type.
    """
    if isinstance(image, np.ndarray):
        pixels = image[..., 0] if image.shape[2:] == (1,) else image
        try:
            if image.ndim not in (2, 3) or not image.size:
                raise ValueError("it is no image")
            return Image.fromarray(pixels.astype(np.float32) if pixels.dtype.kind == "f" else pixels)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"expected an image (h, w), or uint8 (h, w, 1, 3 or 4), got {image.dtype} of shape {image.shape}: "
                "convert it, with channels last"
            ) from error
    with suppress(Exception):  # a damaged orientation is ignored
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # not yet applied by decode
            return ImageOps.exif_transpose(image)
    return image


def is_deep(image: Image.Image) -> bool:
    """Return whether an image has one channel with more than 8 bits per pixel, integers or floating point."""
    return image.mode[0] in "IF"


def is_transparent(image: Image.Image) -> bool:
    """Return whether any pixel is at least partly transparent."""
    return image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255)


def has_further_frames(image: Image.Image | np.ndarray) -> bool:
    """Return whether the file has further pages or frames; the second picture of an MPO photograph does not count."""
    with suppress(Exception):  # further frames may be damaged
        return isinstance(image, Image.Image) and image.format in ("GIF", "PNG", "TIFF", "WEBP") and image.is_animated  # type: ignore[attr-defined]
    return False


def blend(image: Image.Image, background: str) -> Image.Image:
    """Return a transparent image on a background, in RGBA."""
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image)


def opaque_where(opaque: np.ndarray) -> Image.Image:
    """Return an alpha channel with 255 where ``opaque`` is true, else 0."""
    return Image.fromarray(np.where(opaque, 255, 0).astype(np.uint8))
