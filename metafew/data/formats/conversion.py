"""Convert images of any mode and size to uint8 squares, in the same way for a complete dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from metafew.config.option_values import check_choice
from metafew.data.formats.images import UPPER_BYTES, decode
from metafew.errors import UsageError

FITS = ("crop", "stretch", "pad")
BACKGROUNDS = ("white", "black")
CHOICES = ("fit", "invert", "white", "background")
"""The arguments of a conversion other than the form of its result."""
WHITES = (1, 255, 65535)
OVERSHOOT = 1.25
"""How far floating-point pixels may exceed white, as those of a resized image do."""
FAINT = 32
"""Grey levels that are too few to show a drawing: 1/8 of 256."""


class Conversion:
    """Convert images to squares of a given size and number of channels.

    An image becomes a square of uint8 in this order:

    1. Pixels of more than 8 bits (16-bit or 32-bit grey, floating point) are divided by white, clipped to [0, 1] and
       rounded to 0..255; those that are not finite become 0. Of 16-bit colours, Pillow reads the upper 8 bits.
    2. ``crop`` takes the central square; its left and top edges are rounded down.
    3. Transparent pixels are blended with the background.
    4. Colours become grey (0.299 red + 0.587 green + 0.114 blue, ITU-R BT.601) or grey becomes colours. Colour profiles
       are ignored; CMYK is (1 - ink) (1 - black).
    5. An image of another size is resampled by a Lanczos filter, first its rows, then its columns. ``pad`` resizes the
       longer side and fills the margins with the background.
    6. ``invert`` subtracts all of it from 255.

    ``white`` and ``background`` may be None. :meth:`decide` then sets both, once for all images of a dataset. A single
    image is converted with white 65535 for integers and 1 for floating point, and a white background.

    Args:
        channels: 1 (grey) or 3 (red, green, blue).
        size: height and width of the result, in pixels.
        fit: ``crop``, ``stretch`` or ``pad``: what becomes of an image that is not square.
        invert: whether images are drawings in dark ink on a light background, to be stored with ink 255 on 0.
        white: the value of white in images of more than 8 bits.
        background: ``white`` or ``black``: what is behind transparent pixels, and the margins of ``fit=pad``.

    Raises:
        UsageError: if ``fit``, ``invert``, ``white`` or ``background`` has another value.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        fit: str = FITS[0],
        invert: bool = False,
        white: float | None = None,
        background: str | None = None,
    ):
        check_choice("dataset.fit", fit, FITS)
        check_choice("dataset.invert", invert, (False, True))
        check_choice("dataset.background", background, (*BACKGROUNDS, None))
        if white is not None and (isinstance(white, bool) or not isinstance(white, int | float) or not white > 0):
            raise UsageError(
                f"expected dataset.white to be a number above 0, or null, got {white}: type dataset.white=65535"
            )
        self.channels, self.size, self.fit, self.invert = channels, size, fit, invert
        self.white, self.background = white, background
        self._decided = False
        self._counts: Counter[str] = Counter()
        self._values: dict[str, Any] = {}
        self._cut_away: list[float] = []

    @property
    def options(self) -> dict[str, Any]:
        """The choices to make an equal conversion, with what :meth:`decide` has set."""
        return {name: getattr(self, name) for name in CHOICES}

    @property
    def seen(self) -> dict[str, Any]:
        """What the images so far were like: numbers of images, and shares and values; nothing that did not occur."""
        found = {name: count for name, count in self._counts.items() if count}
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
        """Set white and the background, unless they were given, from all images of a dataset.

        White is 65535 if there are only integers; if there are images in floating point, it is the smallest of 1, 255
        and 65535 that no pixel exceeds by more than a quarter. The background is white, unless more of the
        transparent images are faint on white than on black: their grey levels lie within 32 of one another.
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
            image: of any size and mode; or an array ``(h, w)``, or uint8 ``(h, w, 1, 3 or 4)``; or the path of a file.

        Returns:
            uint8 ``(channels, size, size)``.

        Raises:
            UsageError: if the file cannot be read, it is no such array, or white cannot be applied.
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
        pixels = np.atleast_3d(np.asarray(self._resize(image))).transpose(2, 0, 1)
        self._counts["constant"] += bool((pixels == pixels[:, :1, :1]).all())
        return 255 - pixels if self.invert else pixels

    def _resize(self, image: Image.Image) -> Image.Image:
        """Resample to the size of the result; an exact copy if the image has that size."""
        square = (self.size, self.size)
        if self.fit != "pad" or image.width == image.height:
            return image.resize(square, Image.Resampling.LANCZOS)
        scale = self.size / max(image.size)
        width, height = (max(1, round(length * scale)) for length in image.size)
        padded = Image.new(image.mode, square, self.background or BACKGROUNDS[0])
        inner = image.resize((width, height), Image.Resampling.LANCZOS)
        padded.paste(inner, ((self.size - width) // 2, (self.size - height) // 2))
        return padded

    def _to_8_bits(self, image: Image.Image) -> Image.Image:
        """Scale pixels of more than 8 bits to 0..255, as Pillow's own conversion clips them at 255."""
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
        transparent = image.info.get("transparency")  # of a PNG file: the value of transparent pixels
        return grey if transparent is None else Image.merge("LA", (grey, opaque_where(values != transparent)))

    def _check_upper_bytes(self, image: Image.Image) -> None:
        """Count the range of 16-bit colours, and raise UsageError if white is another than theirs."""
        if self.white not in (None, 65535):
            raise UsageError(
                f"expected 8 bits for images in colour with dataset.white={self.white:g}, got 16 bits, of which only "
                "the upper 8 are read: convert the files to 8 bits, or type dataset.white=null"
            )
        extrema = [image.getchannel(band).getextrema() for band in image.getbands() if band not in "Aa"]
        self._counts["upper_bytes"] += 1
        self._count_values(257 * min(low for low, _ in extrema), 257 * max(high for _, high in extrema), 65535)  # type: ignore[operator,type-var]

    def _count_values(self, low: float, high: float, white: float) -> None:
        """Count an image of more than 8 bits whose pixels are from ``low`` to ``high``."""
        self._counts["deep"] += 1
        self._counts["below_0"] += low < 0
        self._counts["above_white"] += high > 1.01 * white
        seen = self._values
        self._values = {
            "smallest": min(low, seen.get("smallest", low)),
            "largest": max(high, seen.get("largest", high)),
            "white": white,
        }


def as_image(image: Image.Image | np.ndarray) -> Image.Image:
    """Return the image in an array, or the image itself, upright by its EXIF orientation.

    Raises:
        UsageError: if the array has another shape or type.
    """
    if isinstance(image, np.ndarray):
        pixels = image[..., 0] if image.shape[2:] == (1,) else image
        try:
            return Image.fromarray(pixels.astype(np.float32) if pixels.dtype.kind == "f" else pixels)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"expected an image (h, w), or uint8 (h, w, 1, 3 or 4), got {image.dtype} of shape {image.shape}: "
                "convert it, with channels last"
            ) from error
    with suppress(Exception):  # a damaged orientation is ignored
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # not yet by decode
            return ImageOps.exif_transpose(image)
    return image


def is_deep(image: Image.Image) -> bool:
    """Return whether an image has more than 8 bits a pixel in one channel: integers, or floating point."""
    return image.mode[0] in "IF"


def is_transparent(image: Image.Image) -> bool:
    """Return whether any pixel is transparent, at least partly."""
    return image.has_transparency_data and image.convert("RGBA").getextrema()[3] != (255, 255)


def has_further_frames(image: Image.Image | np.ndarray) -> bool:
    """Return whether the file has further pages or frames; the second picture of a photograph (MPO) does not count."""
    with suppress(Exception):  # further frames may be damaged
        return isinstance(image, Image.Image) and image.format in ("GIF", "PNG", "TIFF", "WEBP") and image.is_animated  # type: ignore[attr-defined]
    return False


def blend(image: Image.Image, background: str) -> Image.Image:
    """Return a transparent image on a background, in RGBA."""
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image)


def opaque_where(opaque: np.ndarray) -> Image.Image:
    """Return an alpha channel of 255 where ``opaque`` is true, and else 0."""
    return Image.fromarray(np.where(opaque, 255, 0).astype(np.uint8))
