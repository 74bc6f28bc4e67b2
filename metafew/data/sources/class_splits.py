"""Read class splits from a file, or draw them at random."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection as Names
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from math import isclose
from pathlib import Path

from metafew.data.formats.damage import explain_damage
from metafew.data.formats.tree import SUFFIXES
from metafew.data.sources.source import SPLITS
from metafew.errors import UsageError

WORDS = {"valid": "val", "validation": "val"} | {split: split for split in SPLITS}


def divide(names: Names[str], listing: Path | None, fractions: Sequence[float], seed: int) -> dict[str, list[str]]:
    """Divide classes into ``train``, ``val`` and ``test``.

    Args:
        names: the existing classes.
        listing: a JSON file, ``{"train": [class, ...], "val": [...], "test": [...]}``, or a CSV file with a header and
            the columns class and split. None draws the splits: the draw depends only on the names and the seed, and
            sizes follow the fractions by Adams' method of apportionment, with at least one class for each fraction
            above 0.
        fractions: fraction of the classes in each split.
        seed: seed of the draw.

    Raises:
        UsageError: if the file has another form or lists a class twice, or there are too few classes to draw from.
    """
    if listing is not None:
        splits = read_json_splits(listing) if listing.suffix.lower() == ".json" else read_csv_splits(listing)
        check_disjoint(splits, listing)
        return splits
    if len(names) < (least := sum(fraction > 0 for fraction in fractions)):
        training = ", or type dataset.fractions=[1,0,0] val.total=0 stages=fit to do without validation and test"
        raise UsageError(
            f"expected at least {least} classes to draw {least} splits from, got {len(names)} ({', '.join(names)}): "
            f"add classes{training * (len(names) > 1)}"
        )
    counts = [0, 0, 0]
    for _ in names:
        counts[max(range(3), key=lambda split: fractions[split] / (counts[split] or 1e-9))] += 1
    shuffled = iter(sorted(names, key=lambda name: sha256(repr((seed, name)).encode()).digest()))
    return {split: sorted(next(shuffled) for _ in range(count)) for split, count in zip(SPLITS, counts, strict=True)}


def check_fractions_sum_to_one(fractions: Sequence[float]) -> None:
    """Raise UsageError unless ``fractions`` are three non-negative numbers with sum 1."""
    numbers = isinstance(fractions, Sequence) and all(isinstance(part, int | float) for part in fractions)
    if not numbers or len(fractions) != 3 or not min(fractions) >= 0 or not isclose(sum(fractions), 1, abs_tol=1e-6):
        raise UsageError(
            f"expected dataset.fractions to be three non-negative numbers with sum 1, got {fractions}: type "
            "dataset.fractions=[0.64,0.16,0.2]"
        )


def read_json_splits(file: Path) -> dict[str, list[str]]:
    """Return the class names of each split in a JSON file."""
    with explain_damage(file, "JSON", OSError, ValueError, advice="correct the file"):
        content = json.loads(file.read_text("utf-8-sig"))
    if not isinstance(content, dict) or not all(
        key in SPLITS and isinstance(names, list) and all(isinstance(name, str) for name in names)
        for key, names in content.items()
    ):
        raise UsageError(
            f'expected {file} to be {{"train": [class, ...], "val": [...], "test": [...]}} with class names in quotes, '
            "got other content: correct the file"
        )
    return {split: content.get(split, []) for split in SPLITS}


def read_csv_splits(file: Path) -> dict[str, list[str]]:
    """Return the class names of each split in a CSV file of classes and splits."""
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name, word in read_csv_pairs(file, "class and split"):
        if word.lower() not in WORDS:
            raise UsageError(
                f"expected a split for class '{name}' in {file}, got '{word}': write train, val or test there"
            )
        splits[WORDS[word.lower()]].append(name)
    return splits


def read_csv_pairs(file: Path, columns: str) -> list[tuple[str, str]]:
    """Return the first two columns of a CSV file, without its header."""
    with (
        explain_damage(file, "CSV", OSError, ValueError, csv.Error, advice="correct the file"),
        file.open(encoding="utf-8-sig", newline="") as lines,
    ):
        reader = csv.reader(lines, skipinitialspace=True)
        rows = [(reader.line_num, [cell.strip() for cell in row[:2]]) for row in reader if row]
    for line, row in rows:
        if len(row) < 2 or not all(row):
            raise UsageError(f"expected line {line} of {file} to start with {columns}, got {row}: correct the file")
    header = rows[0][1] if rows else ["", ""]
    if len(rows) < 2 or header[0].lower().endswith(SUFFIXES) or header[1].lower() in WORDS:
        raise UsageError(
            f"expected {file} to be a line of column names followed by lines of {columns}, got {len(rows)} lines that "
            f"start with {header}: add what is missing"
        )
    return [(first, second) for _, (first, second) in rows[1:]]


def check_disjoint(splits: Mapping[str, Iterable[str]], where: Path) -> None:
    """Raise UsageError if a class is listed twice."""
    seen: dict[str, str] = {}
    for split, names in splits.items():
        for name in names:
            if name in seen:
                raise UsageError(
                    f"expected splits without a common class in {where}, but class '{name}' is in {seen[name]} and "
                    f"again in {split}: remove it from one, or rename one of two different classes"
                )
            seen[name] = split
