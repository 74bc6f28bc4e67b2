"""Compare and sort the names of classes as people do."""

from __future__ import annotations

import re
from unicodedata import normalize


def class_name(label: object) -> str:
    """Return a label as the name of a class, in Unicode's composed form (NFC).

    File systems and spreadsheets write an accented letter as one character or as a letter and its accent.
    """
    return normalize("NFC", str(label))


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Return a sorting key that compares numbers within names by their value: ``a2`` is before ``a10``."""
    parts: list[str | int] = [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
    return parts, name
