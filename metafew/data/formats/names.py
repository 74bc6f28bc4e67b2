"""The names of classes and of the user's own data; natural order of names."""

from __future__ import annotations

import re
from os.path import abspath, basename
from unicodedata import normalize


def class_name(label: object) -> str:
    """Return a label as a class name, in Unicode's composed form (NFC).

    File systems and spreadsheets write an accented letter as one character, or as a letter and its accent.
    """
    return normalize("NFC", str(label))


def data_name(root: object) -> str:
    """Return the name in tables of the user's own data: that of the folder, or of the file without ``.npz``.

    >>> data_name("/data/birds.v2"), data_name("/data/a/../vectors.npz")
    ('birds.v2', 'vectors')
    """
    return basename(abspath(str(root))).removesuffix(".npz")


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Return a sorting key that compares numbers within names by value: ``a2`` sorts before ``a10``."""
    parts: list[str | int] = [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
    return parts, name
