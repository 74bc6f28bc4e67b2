"""The names of classes and of the user's own data; natural order of names."""

from __future__ import annotations

import re
from collections.abc import Hashable
from os.path import abspath, basename
from unicodedata import normalize

from metafew.errors import UsageError


def composed(text: object) -> str:
    """Return text in Unicode's composed form (NFC).

    File systems and spreadsheets write an accented letter as one character, or as a letter and its accent.
    """
    return normalize("NFC", str(text))


def class_name(label: object) -> str:
    """Return a label as a class name, :func:`composed`.

    Raises:
        UsageError: if it is the name of a folder that is not encoded in UTF-8, which tables and figures cannot show.
    """
    name = composed(label)
    if not name.isascii() and any("\ud800" <= character <= "\udfff" for character in name):
        raise UsageError(f"expected names of classes in UTF-8, got {name!r}: rename the folder")
    return name


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


def ordered(labels: list[Hashable]) -> list:
    """Return the distinct labels, sorted if they can be compared, and strings in natural order.

    >>> ordered(["b10", "b2", "b10"]), ordered([10, 2]), ordered(["b", 1, "b"])
    (['b2', 'b10'], [2, 10], ['b', 1])
    """
    try:
        classes = list(dict.fromkeys(labels))
    except TypeError as error:
        raise UsageError(
            f"expected labels that can be keys of a dictionary ({error}): give strings or numbers"
        ) from error
    if all(isinstance(label, str) for label in classes):
        return sorted(classes, key=natural_order)
    try:
        return sorted(classes)
    except TypeError:
        return classes
