"""Compare and sort class names in natural order."""

from __future__ import annotations

import re
from unicodedata import normalize


def class_name(label: object) -> str:
    """Return a label as a class name, in Unicode's composed form (NFC).

    File systems and spreadsheets write an accented letter as one character, or as a letter and its accent.
    """
    return normalize("NFC", str(label))


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Return a sorting key that compares numbers within names by value: ``a2`` sorts before ``a10``."""
    parts: list[str | int] = [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
    return parts, name
