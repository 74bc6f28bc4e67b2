"""Decode images of any format, mode and size."""

from __future__ import annotations

import io
import warnings
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from metafew.data.formats.damage import UnreadableImages

FORMATS = ("PNG", "JPEG", "PPM", "BMP", "WEBP", "GIF", "TIFF")  # others run external programs, as EPS does
UPPER_BYTES = "upper bytes"
"""The entry in ``info`` of images in 16-bit colour, of which Pillow decodes the upper 8 bits."""


def decode(file: Path | BinaryIO, name: str) -> Image.Image:
    """Decode an image: the first frame of an animation, rotated upright by its EXIF orientation.

    Args:
        file: a file, or a stream positioned at the image's first byte.
        name: the image's name in error messages.

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
        problem = f"its content is not {', '.join(FORMATS[:-1])} or {FORMATS[-1]}" if content else "it is empty"
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        problem = f"it declares more than {Image.MAX_IMAGE_PIXELS:,} pixels"
    except Exception as error:  # decoders raise errors of any type
        problem = "it is damaged or forbidden: " + " ".join(f"{type(error).__name__}, {error}".split())[:200]
    else:
        if image.mode != "LAB":  # which Pillow cannot convert
            return image
        problem = "its colours are CIELAB, not RGB"
    raise UnreadableImages([(name, problem)])
