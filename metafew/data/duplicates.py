"""Find copies: equal images within a class, across classes, and across splits or datasets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

POLICIES = ("warn", "error", "drop")
"""Values of ``dataset.duplicates``."""
EXAMPLES = 3
"""Number of reported examples per kind of copies."""
Classes = Mapping[str, Sequence[Mapping[str, Any]]]
"""By split, the ``name``, ``group``, ``turns`` and ``keys`` (rows of images) of each class, as in a store."""


class Stored(NamedTuple):
    """An image as a member of a class.

    Attributes:
        split: the split.
        number: the number of the class in its split.
        name: the name of the class.
        row: the row of the image in its split.
    """

    split: str
    number: int
    name: str
    row: int


def hash_image(content: bytes) -> int:
    """Return 64 bits of the BLAKE2b hash of an image; a collision among a million images has probability 3e-8."""
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")


def find_copies(classes: Classes, hashes: Mapping[str, np.ndarray]) -> list[list[Stored]]:
    """Return the groups of equal images, in the order of their first members.

    Classes that share images in different rotations do not count as copies.

    Args:
        classes: the classes of each split.
        hashes: for each split, ``(n,)`` uint64, the hash of each of its images.
    """
    found = [(split, number) for split, of_split in classes.items() for number in range(len(of_split))]
    rows = [np.asarray(classes[split][number]["keys"], np.int64) for split, number in found]
    if not any(map(len, rows)):
        return []
    turns = [np.uint64(classes[split][number]["turns"]) for split, number in found]
    content = [hashes[split][of_class] for (split, _), of_class in zip(found, rows, strict=True)]
    identity = np.concatenate([each + turn for each, turn in zip(content, turns, strict=True)])
    owner, row = np.repeat(np.arange(len(found)), list(map(len, rows))), np.concatenate(rows)
    order = np.argsort(identity, kind="stable")
    starts = np.flatnonzero(np.diff(identity[order], prepend=~identity[order[:1]]))
    sizes = np.diff(starts, append=len(order))
    groups = [order[start : start + size] for start, size in zip(starts, sizes, strict=True) if size > 1]

    def member(index: int) -> Stored:
        split, number = found[owner[index]]
        return Stored(split, number, classes[split][number]["name"], int(row[index]))

    return [[member(index) for index in group] for group in sorted(groups, key=lambda group: group[0])]


def count_copies(groups: Sequence[Sequence[Stored]], describe: Callable[[str, int], str]) -> dict[str, dict]:
    """Return the number of copies of each kind, with examples; an empty dictionary if there are none.

    ``within_class`` counts images beyond the first of each group of equal images in a class. ``across_classes`` and
    ``across_splits`` count distinct images that occur in several classes or splits; classes of different splits are
    different, whatever their names. An example contains the classes, the number of copies that they share, and the
    names of two equal images.

    Args:
        groups: the groups of equal images.
        describe: returns the name of an image, given its split and row.
    """
    kinds: dict[str, Callable[[Stored], Any]] = {
        "within_class": lambda image: image.row,
        "across_classes": lambda image: (image.split, image.number),
        "across_splits": lambda image: image.split,
    }
    copies = {}
    for kind, place in kinds.items():
        pairs: Counter[tuple] = Counter()
        first: dict[tuple, tuple[Stored, Stored]] = {}
        images = 0
        for group in by_class(groups) if kind == "within_class" else groups:
            others = list(
                {place(image): image for image in reversed(group) if place(image) != place(group[0])}.values()
            )
            images += len(others) if kind == "within_class" else bool(others)
            for other in reversed(others):
                classes = tuple(dict.fromkeys(f"{image.name} ({image.split})" for image in (group[0], other)))
                pairs[classes] += 1
                first.setdefault(classes, (group[0], other))
        if images:
            copies[kind] = {
                "images": images,
                "examples": [
                    {
                        "classes": list(classes),
                        "images": count,
                        "files": [describe(image.split, image.row) for image in first[classes]],
                    }
                    for classes, count in pairs.most_common(EXAMPLES)
                ],
            }
    return copies


def by_class(groups: Sequence[Sequence[Stored]]) -> list[list[Stored]]:
    """Return the groups of equal images of a single class."""
    divided: dict[tuple, list[Stored]] = {}
    for number, group in enumerate(groups):
        for image in group:
            divided.setdefault((number, image.split, image.number), []).append(image)
    return list(divided.values())


def without_copies(classes: Classes, groups: Sequence[Sequence[Stored]]) -> dict[str, list[dict]]:
    """Return the classes with one image of each group within a class, and no image of groups across classes.

    Classes without remaining images are dropped.
    """
    dropped: set[Stored] = set()
    for group in groups:
        several = len({(image.split, image.number) for image in group}) > 1
        dropped.update(group if several else group[1:])
    unwanted: dict[tuple[str, int], set[int]] = {}
    for image in dropped:
        unwanted.setdefault((image.split, image.number), set()).add(image.row)
    kept: dict[str, list[dict]] = {}
    for split, of_split in classes.items():
        kept[split] = []
        for number, each in enumerate(of_split):
            rows = [row for row in each["keys"] if row not in unwanted.get((split, number), ())]
            if rows:
                kept[split].append({**each, "keys": rows})
    return kept
