"""Convert images of any mode and size to uint8 squares, in the same way for all images of a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from metafew.config.option_values import check_choice
from metafew.data.formats.images import (
    UPPER_BYTES,
    as_image,
    blend,
    decode,
    has_further_frames,
    is_deep,
    is_transparent,
    opaque_where,
)
from metafew.errors import UsageError

FITS = ("crop", "stretch", "pad")
BACKGROUNDS = ("white", "black")
RESAMPLINGS = ("lanczos", "area")
CHOICES = ("fit", "invert", "white", "background")
"""The arguments of a conversion that users choose, except those for the shape of the result."""
WHITES = (1, 255, 65535)
OVERSHOOT = 1.25
"""Tolerance for floating-point pixels above white, as in resized images."""
FAINT = 32
"""A range of grey levels too small to show a drawing, 1/8 of 256."""


class Conversion:
    """Convert images to squares of a given size and number of channels.

    An image becomes a square of uint8 in this order:

    1. Pixels of more than 8 bits (16-bit or 32-bit grey, floating point) are divided by white, clipped to [0, 1] and
       rounded to 0..255; non-finite pixels become 0. Of 16-bit colours, Pillow reads the upper 8 bits.
    2. ``crop`` takes the central square; its left and top edges are rounded down.
    3. Transparent pixels are blended with the background.
    4. Colours become grey (0.299 red + 0.587 green + 0.114 blue, ITU-R BT.601) or grey becomes colours. Colour profiles
       are ignored; CMYK is (1 - ink) (1 - black).
    5. Images of other sizes are resampled by a Lanczos filter, rows first, or averaged over areas. ``pad`` resizes the
       longer side and fills the margins with the background.
    6. ``invert`` subtracts all pixels from 255.

    ``white`` and ``background`` may be None; :meth:`decide` then sets them once for all images of a dataset. Single
    images are converted with white 65535 for integers and 1 for floating point, and a white background.

    Args:
        channels: 1 (grey) or 3 (red, green, blue).
        size: height and width of the result, in pixels.
        fit: ``crop``, ``stretch`` or ``pad``: the conversion of images that are not square.
        invert: whether images are drawings in dark ink on a light background, to be stored with ink 255 on 0.
        white: the value of white in images of more than 8 bits.
        background: ``white`` or ``black``, behind transparent pixels and in the margins of ``fit=pad``.
        resample: ``lanczos``, or ``area`` for averages over areas.

    Raises:
        UsageError: if ``fit``, ``invert``, ``white`` or ``background`` has an invalid value.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        fit: str = FITS[0],
        invert: bool = False,
        white: float | None = None,
        background: str | None = None,
        resample: str = RESAMPLINGS[0],
    ):
        check_choice("dataset.fit", fit, FITS)
        check_choice("dataset.invert", invert, (False, True))
        check_choice("dataset.background", background, (*BACKGROUNDS, None))
        if white is not None and (isinstance(white, bool) or not isinstance(white, int | float) or not white > 0):
            raise UsageError(
                f"expected dataset.white to be a number above 0, or null, got {white}: type dataset.white=65535"
            )
        self.channels, self.size, self.fit, self.invert = channels, size, fit, invert
        self.white, self.background, self.resample = white, background, resample
        self._decided = False
        self._counts: Counter[str] = Counter()
        self._values: dict[str, Any] = {}
        self._cut_away: list[float] = []

    @property
    def options(self) -> dict[str, Any]:
        """The options of an equal conversion, including values set by :meth:`decide`."""
        return {name: getattr(self, name) for name in (*CHOICES, "resample")}

    @property
    def seen(self) -> dict[str, Any]:
        """Properties of the images so far: numbers of images, shares and values, without those that did not occur."""
        found: dict[str, Any] = {name: count for name, count in self._counts.items() if count}
        if self._cut_away:
            share = sum(self._cut_away) / self._counts["images"]
            found |= {"cut_away": round(share, 4), "most_cut_away": round(max(self._cut_away), 4)}
        return found | self._values

    def depends_on_dataset(self, image: Image.Image | np.ndarray) -> bool:
        """Return whether the conversion of an image requires :meth:`decide` first."""
        if self._decided or isinstance(image, np.ndarray):
            return False
        on_background = (self.fit == "pad" and image.width != image.height) or is_transparent(image)
        return (is_deep(image) and self.white is None) or (on_background and self.background is None)

    def decide(self, images: Iterable[Image.Image | np.ndarray]) -> None:
        """Derive white and background from all images of a dataset, unless they are given.

        White is 65535 if there are only integers; with images in floating point, it is the smallest of 1, 255 and 65535
        that no pixel exceeds by more than a quarter. The background is white, unless more transparent images are faint
        on white than on black, which means that their grey levels lie within a range of 32.
        """
        largest, floats, faint = 0.0, False, Counter[str]()
        for image in images:
            if isinstance(image, np.ndarray):
                continue
            if is_deep(image):
                values = np.asarray(image)
                largest = max(largest, values[np.isfinite(values)].max(initial=0).item())
                floats |= image.mode == "F"
            elif is_transparent(image):
                for colour in BACKGROUNDS:
                    low, high = blend(image, colour).convert("L").getextrema()
                    faint[colour] += high - low < FAINT  # type: ignore[operator]  # of one channel
        if self.white is None and largest:
            self.white = next((w for w in WHITES if largest <= OVERSHOOT * w), None) if floats else 65535
        self.background = self.background or ("black" if faint["black"] < faint["white"] else "white")
        self._decided = True

    def __call__(self, image: Image.Image | np.ndarray | str | Path) -> np.ndarray:
        """Convert an image.

        Args:
            image: an image of any size and mode; or an array ``(h, w)``, or uint8 ``(h, w, 1, 3 or 4)``; or the path of
                a file.

        Returns:
            uint8 ``(channels, size, size)``.

        Raises:
            UsageError: if the file cannot be read, the array has another shape or type, or white cannot be applied.
        """
        if isinstance(image, str | Path):
            image = decode(Path(image), str(image))
        self._counts["images"] += 1
        self._counts["further_frames"] += has_further_frames(image)
        image = as_image(image)
        if is_deep(image):
            image = self._to_8_bits(image)
        elif image.info.get(UPPER_BYTES):
            self._check_upper_bytes(image)
        side, (width, height) = min(image.size), image.size
        if self.fit == "crop" and width != height:
            self._counts["cropped"] += 1
            self._cut_away.append(1 - side / max(width, height))
            left, top = (width - side) // 2, (height - side) // 2
            image = image.crop((left, top, left + side, top + side))
        if image.has_transparency_data:
            self._counts["transparent"] += is_transparent(image)
            image = blend(image, self.background or BACKGROUNDS[0])
        image = image.convert("L" if self.channels == 1 else "RGB")
        if self.resample == "area":
            values = channels_first(self._padded(image)).astype(np.float64)
            pixels = np.rint(average(255 - values if self.invert else values, self.size)).astype(np.uint8)
        else:
            pixels = channels_first(self._resize(image))
            pixels = 255 - pixels if self.invert else pixels
        self._counts["constant"] += bool((pixels == pixels[:, :1, :1]).all())
        return pixels

    def _resize(self, image: Image.Image) -> Image.Image:
        """Resample to the size of the result; images of that size are copied exactly."""
        width = height = self.size
        if self.fit == "pad":
            scale = self.size / max(image.size)
            width, height = (max(1, round(length * scale)) for length in image.size)
        return self._padded(image.resize((width, height), Image.Resampling.LANCZOS))

    def _padded(self, image: Image.Image) -> Image.Image:
        """Add margins with ``fit=pad``, so that the image becomes square."""
        if self.fit != "pad" or image.width == image.height:
            return image
        side = max(image.size)
        padded = Image.new(image.mode, (side, side), self.background or BACKGROUNDS[0])
        padded.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return padded

    def _to_8_bits(self, image: Image.Image) -> Image.Image:
        """Scale pixels of more than 8 bits to 0..255; Pillow's own conversion would clip them at 255."""
        values = np.asarray(image, np.float64)
        finite = np.isfinite(values)
        white = self.white or (1 if image.mode == "F" else 65535)
        low, high = (values[finite].min().item(), values[finite].max().item()) if finite.any() else (0, 0)
        if self.white is None and image.mode == "F" and high > OVERSHOOT:
            raise UsageError(
                f"expected floating-point pixels from 0 (black) to 1 (white), got up to {high:g}: type "
                f"dataset.white={next((w for w in WHITES if high <= w), high):g}"
            )
        self._count_values(low, high, white)
        self._counts["not_finite"] += not finite.all()
        scaled = np.rint(np.where(finite, values, 0).clip(0, white) * (255 / white)).astype(np.uint8)
        grey = Image.fromarray(scaled)
        transparent = image.info.get("transparency")  # in a PNG file, the value of transparent pixels
        return grey if transparent is None else Image.merge("LA", (grey, opaque_where(values != transparent)))

    def _check_upper_bytes(self, image: Image.Image) -> None:
        """Count the range of 16-bit colours, and raise UsageError if white differs from theirs."""
        if self.white not in (None, 65535):
            raise UsageError(
                f"expected 8 bits for images in colour with dataset.white={self.white:g}, got 16 bits, of which only "
                "the upper 8 are read: convert the files to 8 bits, or type dataset.white=null"
            )
        colours = np.asarray(image)[..., [band not in "Aa" for band in image.getbands()]]
        self._counts["upper_bytes"] += 1
        self._count_values(257 * int(colours.min()), 257 * int(colours.max()), 65535)

    def _count_values(self, low: float, high: float, white: float) -> None:
        """Count an image of more than 8 bits with pixels from ``low`` to ``high``."""
        self._counts["deep"] += 1
        self._counts["below_0"] += low < 0
        self._counts["above_white"] += high > 1.01 * white
        self._counts["dim"] += high < white / 8
        seen = self._values
        self._values = {
            "smallest": min(low, seen.get("smallest", low)),
            "largest": max(high, seen.get("largest", high)),
            "white": white,
        }


def channels_first(image: Image.Image) -> np.ndarray:
    """Return the pixels of an image, ``(c, h, w)``."""
    return np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)


def average(images: np.ndarray, size: int) -> np.ndarray:
    """Return images ``(..., h, w)`` resized to squares by averages over areas."""
    rows, columns = (area_weights(length, size) for length in images.shape[-2:])
    return rows @ images @ columns.T


def area_weights(side: int, size: int) -> np.ndarray:
    """Return the ``(size, side)`` matrix that resizes ``side`` pixels to ``size`` by averaging over areas."""
    edges, pixels = np.linspace(0, side, size + 1)[:, None], np.arange(side)
    overlap = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return overlap.clip(0) * size / side
