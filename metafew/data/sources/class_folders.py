"""Determine whether the folders in a folder are classes, groups of classes, or splits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from metafew.config.quoting import to_paste
from metafew.data.formats.columns import WORDS
from metafew.data.formats.names import natural_order
from metafew.data.formats.scan import Scan
from metafew.data.formats.tree import UNLABELLED, Tree, class_files
from metafew.data.sources.class_splits import check_disjoint
from metafew.data.sources.source import SPLITS
from metafew.errors import UsageError

LAYOUTS = ("auto", "classes", "top", "splits")


def read_class_folders(root: Path, layout: str) -> tuple[Tree, dict[str, list[str]] | None]:
    """Read class folders, optionally inside folders of splits.

    Args:
        root: the folder.
        layout: ``classes``: every folder of images is a class. ``top``: every folder in ``root`` is a class, with all
            images below it. ``splits``: the folders named train, val (valid, validation) and test in ``root`` contain
            the classes of these splits, and other folders are not read. ``auto`` means ``splits`` if there are only
            such folders, otherwise ``classes``.

    Returns:
        The images, and the class names of each split, or None if there are no folders of splits.

    Raises:
        UsageError: if there are no such folders, or their layout is ambiguous for ``auto``.
    """
    scan = Scan(root)
    folders = [folder for folder in (*scan.images, *scan.twice) if folder]
    tops = sorted({folder.partition("/")[0] for folder in folders})
    words = [top for top in tops if top.lower() in WORDS]
    if layout == "auto" and words and words != tops and any(f.startswith(f"{w}/") for w in words for f in folders):
        others = [top for top in tops if top not in words]
        raise UsageError(
            f"expected folders of splits or folders of classes in {root}, got {_names(words)} beside {_names(others)}: "
            f"type dataset.layout=splits to read only {_names(words)}, or dataset.layout=classes if every folder of "
            "images is a class"
        )
    if layout == "splits" or (layout == "auto" and words and words == tops):
        return _read_splits(root, words, layout)
    rows = class_files(scan)
    if layout == "auto":
        advice = (
            "type dataset.layout=classes if every folder of images is a class, or dataset.layout=top if every folder "
            f"in {root} is a class with all images below it"
        )
        check_one_layout(root, {name for _, name in rows}, advice)
    if layout == "top":
        rows = [(file, name.partition("/")[0]) for file, name in rows]
    return Tree(root, rows, scan), None


def _read_splits(root: Path, words: Sequence[str], layout: str) -> tuple[Tree, dict[str, list[str]]]:
    """Return the images in folders of splits, and the class names of each split."""
    if not words or len({WORDS[word.lower()] for word in words}) < len(words):
        raise UsageError(
            f"expected one folder for each split in {root}, called train, val and test, got {_names(words)}: keep one "
            "of those for the same split, or type dataset.layout=classes"
        )
    scan, rows = Scan(root, words), []
    classes: dict[str, dict[str, str]] = {}
    for file, name in class_files(scan):
        word, _, below = name.partition("/")
        if below:
            classes.setdefault(word, {})[below] = name
            rows.append((file, below))
        else:
            scan.ignore(UNLABELLED, file)
    largest = max(words, key=lambda word: len(classes.get(word, ())))
    divided = f"type {to_paste('dataset.root', root / largest)}, whose classes are then divided"
    for word in words:
        if word not in classes:
            raise UsageError(
                f"expected a folder of images for each class in {root / word}, got images without classes, or none "
                f"of its own: {divided}"
            )
        if layout == "auto":
            advice = "type dataset.layout=splits if every folder of images is a class"
            check_one_layout(root / word, classes[word], advice)
    splits = {WORDS[word.lower()]: list(found) for word, found in classes.items()}
    check_disjoint(splits, f"folders of splits without a common class in {root}", divided)
    return Tree(root, rows, scan), {split: sorted(splits.get(split, ()), key=natural_order) for split in SPLITS}


def check_one_layout(root: Path, names: Iterable[str], advice: str) -> None:
    """Raise UsageError unless all class folders are at the same depth, and none is in or below a folder of a split.

    Args:
        root: the folder.
        names: the paths of the class folders in it.
        advice: the advice in the error message.
    """
    ordered = sorted(names, key=lambda name: (name.count("/"), natural_order(name)))
    above = {str(parent) for name in ordered for parent in PurePosixPath(name).parents}
    pair = ordered[:1] + ordered[-1:]
    if nested := [name for name in ordered if name in above]:
        pair = [nested[0], next(name for name in ordered if name.startswith(f"{nested[0]}/"))]
    if len({name.count("/") for name in pair}) > 1:
        raise UsageError(
            f"expected the folders of images in {root} to be equally deep, got images of classes in {pair[0]} and in "
            f"{pair[1]}: {advice}"
        )
    of_splits = [name for name in ordered if "/" in name and {part.lower() for part in name.split("/")} & set(WORDS)]
    if of_splits:
        raise UsageError(
            f"expected class folders in {root}, or folders of splits directly in it, got folders of splits below it, "
            f"such as {of_splits[0]}: type dataset.root=DIR of the folder that holds train, val and test; or {advice}"
        )


def _names(names: Sequence[str]) -> str:
    """Return a short list of names in one line."""
    return ", ".join([*names[:5], *([f"{len(names) - 5} more"] if len(names) > 5 else [])]) or "none"
