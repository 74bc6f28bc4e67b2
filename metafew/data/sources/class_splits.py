"""Read class splits from a file, or draw them at random."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection as Names
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from math import isclose
from pathlib import Path
from typing import Any

from metafew.config.option_values import option_path
from metafew.data.formats.columns import WORDS, read_columns
from metafew.data.formats.damage import explain_damage
from metafew.data.formats.names import class_name, natural_order
from metafew.data.sources.source import SPLITS
from metafew.errors import UsageError


def divide(
    names: Names[str],
    listing: Path | None,
    fractions: Sequence[float],
    seed: int,
    columns: Mapping[str, str] | None = None,
) -> dict[str, list[str]]:
    """Divide classes into ``train``, ``val`` and ``test``.

    Args:
        names: the existing classes.
        listing: a JSON file, ``{"train": [class, ...], "val": [...], "test": [...]}``, or a CSV file with a header and
            the columns class and split. None draws the splits: the draw depends only on the names and the seed, and
            sizes follow from the fractions by Adams' method of apportionment, with at least one class per positive
            fraction.
        fractions: fraction of the classes in each split.
        seed: seed of the draw.
        columns: the names of the columns ``class`` and ``split`` in a CSV file, if they differ from the usual ones.

    Raises:
        UsageError: if the file has another format or lists a class twice, or there are too few classes.
    """
    if listing is not None:
        json_file = listing.suffix.lower() == ".json"
        splits = read_json_splits(listing) if json_file else read_csv_splits(listing, columns or {})
        splits = {split: [class_name(name) for name in listed] for split, listed in splits.items()}
        check_disjoint(splits, f"splits without a common class in {listing}")
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
    return {
        split: sorted((next(shuffled) for _ in range(count)), key=natural_order)
        for split, count in zip(SPLITS, counts, strict=True)
    }


def find_file(root: Path, option: str, name: str | int) -> Path:
    """Return the file named by an option, relative to the working directory or else to ``root``."""
    given = option_path(f"dataset.{option}", name, "FILE")
    for path in (given, root / given):
        if path.is_file():
            return path
    raise UsageError(
        f"expected a file in dataset.{option}, but {name} exists neither in the working directory nor in {root}: type "
        f"dataset.{option}=FILE"
    )


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
        content = json.loads(file.read_text("utf-8-sig"), object_pairs_hook=_object)
    if not isinstance(content, dict) or not all(
        key in SPLITS and isinstance(names, list) and all(isinstance(name, str) for name in names)
        for key, names in content.items()
    ):
        raise UsageError(
            f'expected {file} to be {{"train": [class, ...], "val": [...], "test": [...]}} with class names in quotes, '
            "got other content: correct the file"
        )
    return {split: content.get(split, []) for split in SPLITS}


def read_csv_splits(file: Path, columns: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the class names of each split in a CSV file, which may repeat a class, as a list of its images does."""
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for line, (name, word) in read_columns(file, ("class", "split"), columns).rows:
        if word.lower() not in WORDS:
            raise UsageError(
                f"expected a split for class '{name}' in line {line} of {file}, got '{word}': write train, val or test "
                "there"
            )
        splits[WORDS[word.lower()]].append(name)
    return {split: list(dict.fromkeys(names)) for split, names in splits.items()}


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object in a JSON file; raises ValueError if a key occurs twice."""
    if repeated := [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]:
        raise ValueError(f"it has '{repeated[0]}' twice")
    return dict(pairs)


def check_disjoint(
    splits: Mapping[str, Iterable[str]],
    expected: str,
    advice: str = "remove it from one, or rename one of two different classes",
) -> None:
    """Raise UsageError if a class is listed twice."""
    seen: dict[str, str] = {}
    for split, names in splits.items():
        for name in names:
            if name in seen:
                raise UsageError(
                    f"expected {expected}, but class '{name}' is in {seen[name]} and again in {split}: {advice}"
                )
            seen[name] = split
