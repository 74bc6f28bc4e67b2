"""glyphs: letters drawn in the typefaces that matplotlib installs, a dataset without a download."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from metafew.config.option_values import check_integer
from metafew.data.sources.source import Category, Source, shipped_split
from metafew.errors import UsageError

if TYPE_CHECKING:
    from metafew.data.augment import View

STYLES = {
    "DejaVuSans": ("", "-Bold", "-BoldOblique", "-Oblique"),
    "DejaVuSansMono": ("", "-Bold", "-BoldOblique", "-Oblique"),
    "DejaVuSerif": ("", "-Bold", "-BoldItalic", "-Italic"),
    "STIXGeneral": ("", "Bol", "BolIta", "Italic"),
    "cm": ("b10", "mi10", "r10", "ss10", "tt10"),  # without cmti10, which matplotlib added in 3.11
}
FACES = tuple(family + style for family, styles in STYLES.items() for style in styles)
MIN_DRAWINGS = 12  # drawings per letter
LOOK_ALIKE = 0.875  # correlation of drawings of two letters in one typeface
INK = 5 / 7  # of the side of the image, 20 of 28 pixels: room for small shifts and rotations
OVERSAMPLING = 8
VERSION = 1  # of the drawings


class Glyphs(Source):
    """Letters as classes, typefaces as samples: the default dataset.

    Each letter has at least 12 different drawings, and no two letters look alike in any typeface. Letters and splits
    ship with the package; they were selected by :func:`choose_letters`.

    Args:
        image_size: height and width of a drawing, in pixels.
        jitter: the random view that is part of the data, or None. Stored drawings are upright and centred.
    """

    name = "glyphs"
    channels = 1
    drawings = True

    def __init__(self, image_size: int, jitter: View | None):
        check_integer("dataset.image_size", image_size, 1, 28)
        self.image_size, self.jitter = image_size, jitter

    def splits(self) -> dict[str, list[Category]]:
        """Return the letters of each split, with keys such as ``DejaVuSans-Bold/0041``."""
        return {
            split: [Category(unicodedata.name(letter), keys_of(letter)) for letter in letters]
            for split, letters in shipped_split(self.name).items()
        }

    def fingerprint(self) -> str:
        """Return a checksum of the typefaces, the rasteriser, the letters and the image size."""
        settings = (VERSION, self.image_size, features.version("freetype2"), shipped_split(self.name))
        return checksum(repr(settings), tuple(map(font_path, FACES)))

    def read(self, keys: Sequence[str]) -> Iterator[np.ndarray]:
        """Draw the letters of ``keys`` one by one: uint8 ``(1, image_size, image_size)``, ink 255."""
        return (draw(key, self.image_size)[None] for key in keys)


def font_path(face: str) -> Path:
    """Return the file of a typeface; raises UsageError if matplotlib was installed without it."""
    import matplotlib

    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{face}.ttf")
    if not path.is_file():
        raise UsageError(
            f"dataset=glyphs needs {path} from matplotlib, which lacks it: type "
            "`pip install --force-reinstall matplotlib`"
        )
    return path


@cache
def checksum(settings: str, files: tuple[Path, ...]) -> str:
    """Return the checksum of settings and files; cached, as a run requests it several times."""
    digest = sha256(settings.encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


@cache
def coverage(face: str) -> frozenset[str]:
    """Return the characters that a typeface contains."""
    from matplotlib.ft2font import FT2Font

    # Beyond ASCII, Computer Modern files have other glyphs at the code points of letters, such as Psi at U+00AA.
    last = 0x7F if face.startswith("cm") else 0x10FFFF
    return frozenset(chr(code) for code in FT2Font(str(font_path(face))).get_charmap() if code <= last)


def keys_of(letter: str) -> tuple[str, ...]:
    """Return the keys of the drawings of a letter, one per typeface that contains it."""
    return tuple(f"{face}/{ord(letter):04X}" for face in FACES if letter in coverage(face))


@lru_cache(maxsize=len(FACES))
def font(face: str, em: int) -> ImageFont.FreeTypeFont:
    """Return a typeface whose em is ``em`` pixels."""
    return ImageFont.truetype(str(font_path(face)), em, layout_engine=ImageFont.Layout.BASIC)


def draw(key: str, size: int) -> np.ndarray:
    """Draw one letter, centred, with its longer side 5/7 of the image: uint8 ``(size, size)``, ink 255."""
    face, code = key.split("/")
    em = OVERSAMPLING * size
    canvas = Image.new("L", (3 * em, 3 * em))  # fits the widest letters and their margin
    ImageDraw.Draw(canvas).text((em, 2 * em), chr(int(code, 16)), 255, font(face, em), anchor="ls")
    box = canvas.getbbox()
    assert box is not None  # letters have ink
    left, top, right, bottom = box
    side = max(right - left, bottom - top) / INK
    x, y = (left + right - side) / 2, (top + bottom - side) / 2
    return np.asarray(canvas.resize((size, size), Image.Resampling.BOX, (x, y, x + side, y + side)))


def choose_letters(size: int = 28) -> dict[str, str]:
    """Choose the letters of ``train`` (60 %), ``val`` (15 %) and ``test`` (25 %) that ship with the package.

    Candidates are letters, except modifier letters and compositions ('é', 'ﬁ'), with different drawings in at least 12
    typefaces. In the order of code points, a candidate is dropped if, in any typeface that contains both, its drawing
    correlates above ``LOOK_ALIKE`` with that of a letter kept before. The kept letters are assigned to the splits in
    the order of their SHA-256. This takes seconds, so :class:`Glyphs` reads the stored result.
    """
    candidates = (
        letter
        for letter in sorted(frozenset.union(*map(coverage, FACES)))
        if unicodedata.category(letter) in {"Lu", "Ll", "Lo"}
        and unicodedata.is_normalized("NFKD", letter)
        and len(keys_of(letter)) >= MIN_DRAWINGS
    )
    drawn = {letter: np.array([draw(key, size).ravel() for key in keys_of(letter)]) for letter in candidates}
    letters = [letter for letter, drawings in drawn.items() if len(np.unique(drawings, axis=0)) == len(drawings)]
    shapes = np.zeros((len(FACES), len(letters), size * size))  # an absent drawing correlates with nothing
    for column, letter in enumerate(letters):
        shape = drawn[letter] - drawn[letter].mean(axis=1, keepdims=True)
        have = [letter in coverage(face) for face in FACES]
        shapes[have, column] = shape / np.linalg.norm(shape, axis=1, keepdims=True)
    likeness = np.max(shapes @ shapes.swapaxes(1, 2), axis=0)
    kept: list[int] = []
    for column, similar in enumerate(likeness > LOOK_ALIKE):
        if not similar[kept].any():
            kept.append(column)
    shuffled = sorted((letters[column] for column in kept), key=lambda letter: sha256(letter.encode()).digest())
    val, test = round(0.60 * len(shuffled)), round(0.75 * len(shuffled))  # where they begin
    splits = {"train": shuffled[:val], "val": shuffled[val:test], "test": shuffled[test:]}
    return {split: "".join(sorted(letters)) for split, letters in splits.items()}
