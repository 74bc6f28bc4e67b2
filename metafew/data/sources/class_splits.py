"""Splits by class: read from a file, or drawn."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection as Names
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from math import isclose
from pathlib import Path

from metafew.data.formats.tree import SUFFIXES
from metafew.data.sources import SPLITS
from metafew.errors import UsageError

WORDS = {"valid": "val", "validation": "val"} | {split: split for split in SPLITS}


def divide(names: Names[str], listing: Path | None, fractions: Sequence[float], seed: int) -> dict[str, list[str]]:
    """Divide classes into 'train', 'val' and 'test'.

    Args:
        names: The classes that there are.
        listing: A JSON file, {"train": [class, ...], "val": [...], "test": [...]}, or a CSV file with a header, whose
            first two columns are class and split. None draws the splits: a class's place in the draw follows from its
            name and the seed alone, and as Adams' method apportions seats, counts follow the fractions as well as they
            can with at least one class for each fraction above 0.
        fractions: Of the classes, for each split, where these are drawn.
        seed: What the draw follows from.

    Raises:
        UsageError: The file is not of this form or lists a class twice, or there are too few classes to draw.
    """
    if listing is not None:
        splits = read_json(listing) if listing.suffix.lower() == ".json" else read_splits(listing)
        refuse_repeats(splits, listing)
        return splits
    if len(names) < (least := sum(fraction > 0 for fraction in fractions)):
        raise UsageError(
            f"drawing {least} splits takes {least} classes or more, and there are {len(names)} ({', '.join(names)}): "
            f"add classes, or type 0 in dataset.fractions for a split that you do not need"
        )
    counts = [0, 0, 0]
    for _ in names:
        counts[max(range(3), key=lambda split: fractions[split] / (counts[split] or 1e-9))] += 1
    shuffled = iter(sorted(names, key=lambda name: sha256(repr((seed, name)).encode()).digest()))
    return {split: sorted(next(shuffled) for _ in range(count)) for split, count in zip(SPLITS, counts, strict=True)}


def check_fractions(fractions: Sequence[float]) -> None:
    """Raise `UsageError` unless these are three parts of a whole."""
    numbers = isinstance(fractions, Sequence) and all(isinstance(part, int | float) for part in fractions)
    if not numbers or len(fractions) != 3 or not min(fractions) >= 0 or not isclose(sum(fractions), 1, abs_tol=1e-6):
        raise UsageError(
            f"dataset.fractions are three numbers, none below 0, whose sum is 1, not {fractions}: type "
            f"dataset.fractions=[0.64,0.16,0.2]"
        )


def read_json(file: Path) -> dict[str, list[str]]:
    """Read the class names of each split."""
    try:
        content = json.loads(file.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as JSON ({error}): correct the file") from error
    if not isinstance(content, dict) or not all(
        key in SPLITS and isinstance(names, list) and all(isinstance(name, str) for name in names)
        for key, names in content.items()
    ):
        raise UsageError(
            f'{file} should be {{"train": [class, ...], "val": [...], "test": [...]}} with class names in quotes and '
            f"nothing else: correct the file"
        )
    return {split: content.get(split, []) for split in SPLITS}


def read_splits(file: Path) -> dict[str, list[str]]:
    """Read a CSV file of classes and splits."""
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name, word in read_pairs(file, "class and split"):
        if word.lower() not in WORDS:
            raise UsageError(f"{file} says that class '{name}' is of split '{word}': write train, val or test there")
        splits[WORDS[word.lower()]].append(name)
    return splits


def read_pairs(file: Path, columns: str) -> list[tuple[str, str]]:
    """Return the first two columns of a CSV file without its header."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, skipinitialspace=True)
            rows = [(reader.line_num, [cell.strip() for cell in row[:2]]) for row in reader if row]
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{file} cannot be read as CSV ({error}): correct the file") from error
    for line, row in rows:
        if len(row) < 2 or not all(row):
            raise UsageError(f"line {line} of {file} should start with {columns} and is {row}: correct the file")
    header = rows[0][1] if rows else ["", ""]
    if len(rows) < 2 or header[0].lower().endswith(SUFFIXES) or header[1].lower() in WORDS:
        raise UsageError(
            f"{file} should be a line of column names and then lines of {columns}, and starts with {header} of "
            f"{len(rows)} lines: add what is missing"
        )
    return [(first, second) for _, (first, second) in rows[1:]]


def refuse_repeats(splits: Mapping[str, Iterable[str]], where: Path) -> None:
    """Raise `UsageError` for a class that is listed twice."""
    seen: dict[str, str] = {}
    for split, names in splits.items():
        for name in names:
            if name in seen:
                raise UsageError(
                    f"class '{name}' is in {seen[name]} and again in {split} of {where}, and splits have no class in "
                    f"common: take it out of one, or name one of two different classes otherwise"
                )
            seen[name] = split
