"""Summarize a dataset: its content, what was not read, and warnings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from metafew.data.formats.remarks import remarks
from metafew.data.sources import Source

KINDS = {
    "across_splits": "images in several splits",
    "across_classes": "images in several classes",
    "within_class": "copies within a class",
}
"""Kinds of copies, the most serious first."""
OPTION = re.compile(r"\bdataset\.(\w+)=(\w+)")


def summarize(source: Source, splits: Mapping[str, Mapping[str, Any]], copies: Mapping[str, dict]) -> dict[str, Any]:
    """Return the summary of a dataset, after it has been read, as plain values.

    Args:
        source: the dataset.
        splits: the numbers of ``classes`` and ``images`` of each split.
        copies: the copies of each kind, as returned by :func:`~metafew.data.duplicates.count_copies`.
    """
    return {
        **{what: {split: entry[what] for split, entry in splits.items()} for what in ("classes", "images")},
        "ignored": dict(source.ignored),
        "seen": dict(source.seen),
        "duplicates": dict(copies),
    }


def recorded(summary: dict) -> dict:
    """Return the part of a data summary that checkpoints store: the fingerprint and the sizes of splits."""
    return {key: summary[key] for key in ("fingerprint", "classes", "images")}


def describe_change(title: str, before: dict | None, now: dict) -> str:
    """Describe how the counts of classes and images of a dataset differ from those in a checkpoint.

    >>> before, now = ({"images": {"train": 9, "val": 4}, "classes": {"train": n, "val": 1}} for n in (3, 2))
    >>> describe_change("folder", before, now)
    'dataset=folder has 2 instead of 3 train classes'
    """
    differences = [
        f"{now[what].get(split, 0):,} instead of {count:,} {split} {what}"
        for what in ("classes", "images")
        for split, count in (before or now)[what].items()
        if now[what].get(split, 0) != count
    ]
    return f"dataset={title} has {', '.join(differences) or 'as many classes and images, but not the same'}"


def kinds_of_copies(copies: Mapping[str, dict]) -> list[tuple[str, dict]]:
    """Return the occurring kinds of copies, in words, with counts and examples.

    Images in several classes are left out if all of them are also in several splits, which implies it.
    """
    kinds = {kind: copies[kind] for kind in KINDS if kind in copies}
    counts = {kind: found["images"] for kind, found in kinds.items()}
    if counts.get("across_classes") == counts.get("across_splits", 0):
        del kinds["across_classes"]
    return [(KINDS[kind], found) for kind, found in kinds.items()]


def describe_duplicates(source: Source, copies: Mapping[str, dict]) -> str | None:
    """Describe the numbers of copies of each kind, with examples; None if there are no copies."""
    found = [
        f"{kind}: {copies['images']:,} ({'; '.join(map(describe_example, copies['examples']))})"
        for kind, copies in kinds_of_copies(copies)
    ]
    if not found:
        return None
    return as_typed_for(
        source,
        f"expected each image of dataset={source.title} once, got {', and '.join(found)}: type dataset.duplicates=drop"
        ", or remove them",
    )


def as_typed_for(source: Source, message: str) -> str:
    """Return a message with options in the form for ``source``, which may be one of the datasets of a mixture."""
    return message if source.label is None else OPTION.sub(rf"\1:\2 for {source.title}", message)


def describe_example(example: Mapping[str, Any]) -> str:
    """Return the number of copies, their classes, and two names.

    >>> describe_example({"classes": ["a (train)", "b (test)"], "images": 20, "files": ["a/0.png", "b/0.png"]})
    '20 of a (train) and b (test), such as a/0.png and b/0.png'
    """
    return f"{example['images']:,} of {' and '.join(example['classes'])}, such as {' and '.join(example['files'])}"


def warnings(source: Source, summary: Mapping[str, Any]) -> list[str]:
    """Return a warning for each property of a dataset that makes results misleading.

    Properties of the images are only reported for the user's own datasets.
    """
    seen = summary["seen"] if source.own_images else {}
    found = [as_typed_for(source, f"dataset={source.title}: {remark}") for remark in remarks(seen)]
    images = sum(summary["images"].values())
    if source.duplicates == "warn" and (message := describe_duplicates(source, summary["duplicates"])):
        found.append(message)
    if source.duplicates == "drop" and summary["duplicates"]:
        counts = ", ".join(f"{kind}: {copies['images']:,}" for kind, copies in kinds_of_copies(summary["duplicates"]))
        message = f"dataset={source.title} held {counts}; dataset.duplicates=drop left {images:,} images"
        found.append(as_typed_for(source, message))
    if source.published_images is not None and images != source.published_images:
        found.append(
            as_typed_for(
                source,
                f"expected the {source.published_images:,} images of the published benchmark for dataset="
                f"{source.title}, got {images:,}: results are not those of the benchmark; type dataset.root=DIR with "
                "a copy of just these",
            )
        )
    return found


def summary_lines(source: Source, summary: Mapping[str, Any]) -> list[str]:
    """Return lines on the content of a dataset and on what was not read, for the start of a run."""
    counts = {what: " + ".join(f"{n:,}" for n in summary[what].values()) for what in ("classes", "images")}
    name, splits = source.display_name, " + ".join(summary["images"])
    lines = [f"{name}: {counts['classes']} classes, {counts['images']} images ({splits})"]
    if summary["ignored"]:
        lines.append(f"{name}: not read: {describe_counts(summary['ignored'])}")
    return lines


def full_summary(source: Source, summary: Mapping[str, Any]) -> list[str]:
    """Return lines on everything in the summary of a dataset except the sizes of its splits."""
    lines = [f"not read: {count:,} × {reason}" for reason, count in summary["ignored"].items()]
    lines += [f"{name.replace('_', ' ')}: {value}" for name, value in summary["seen"].items()]
    for kind, words in KINDS.items():
        copies = summary["duplicates"].get(kind, {"images": 0, "examples": []})
        lines += [f"{words}: {copies['images']:,}", *map(describe_example, copies["examples"])]
    return [f"{source.display_name}: {line}" for line in lines]


def describe_counts(counts: Mapping[str, int]) -> str:
    """Return counts with their reasons, the largest first.

    >>> describe_counts({"*.npy in a": 1, "*.heic in b": 1200})
    '1,200 × *.heic in b, 1 × *.npy in a'
    """
    ordered: Sequence[tuple[str, int]] = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{count:,} × {reason}" for reason, count in ordered)
