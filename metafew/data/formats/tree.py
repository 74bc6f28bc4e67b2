"""Read folders of image files: one folder per class, or any folder with a list of files and their classes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from PIL import Image

from metafew.data.formats.images import decode
from metafew.data.formats.names import class_name, natural_order
from metafew.data.formats.scan import SUFFIXES, Scan, no_folder
from metafew.errors import UsageError

UNLABELLED = "images outside of class folders:"


class Tree:
    """Image files below a folder; keys are paths relative to it.

    Without a list, every folder below ``root`` that directly contains images is a class; see :func:`class_files`.

    Args:
        root: the folder.
        rows: pairs of relative file path and class name; None takes classes from folders.
        scan: the scan of ``root`` from which ``rows`` come; None if they come from a list.

    Attributes:
        ignored: the numbers of files and folders that are not read, by reason.

    Raises:
        UsageError: if there is no such folder, it cannot be listed, it contains no labelled images, or a file is
            missing.
    """

    def __init__(self, root: Path, rows: Iterable[tuple[str, str]] | None = None, scan: Scan | None = None):
        self.ignored: Mapping[str, int] = {}
        if rows is None:
            scan = Scan(root)
            rows = class_files(scan)
        if scan is None:
            rows = existing_files(root, rows)
        else:
            scan.warn()
            self.ignored = scan.ignored
        found: dict[str, list[str]] = {}
        for file, name in sorted(((file, class_name(label)) for file, label in rows), key=itemgetter(0)):
            found.setdefault(name, []).append(file)
        if not found:
            raise UsageError(
                f"expected a folder of images for each class in {root}, which holds no folder of images "
                f"({', '.join(SUFFIXES)}): move the images of each class into a folder, list them "
                "(type dataset.labels=FILE.csv), or type the path of another folder"
            )
        self.root = root
        self.classes = {name: tuple(found[name]) for name in sorted(found, key=natural_order)}
        self.files = [root / file for files in self.classes.values() for file in files]

    def open(self, keys: Sequence[str]) -> Iterator[Image.Image]:
        """Decode the images of ``keys``; raises UnreadableImages for each damaged file."""
        return map(lambda key: decode(self.root / key, str(self.root / key)), keys)


def class_files(scan: Scan) -> list[tuple[str, str]]:
    """Return the image files in folders below the root of a scan, each with its class, both relative to the root.

    A class is named after the path of its folder, such as ``Greek/character01``; a folder named ``images`` that is the
    only folder of images in another folder takes that folder's name. Images directly in the root are counted as not
    read.

    Raises:
        UsageError: if two folders have the same name in different Unicode forms.
    """
    for name in scan.images.get("", ()):
        scan.ignore(UNLABELLED, name)
    parents = Counter(str(parent) for folder in scan.images for parent in PurePosixPath(folder).parents)
    rows, folders = [], dict[str, str]()
    for folder, files in scan.images.items():
        parent, _, last = folder.rpartition("/")
        only = last.lower() == "images" and parent and parent not in scan.images and parents[parent] == 1
        name = class_name(parent if only else folder)
        if folder and folders.setdefault(name, folder) != folder:
            raise UsageError(
                f"expected different names of the class folders in {scan.root}, but two of them are both written "
                f"'{name}', as accented letters in different Unicode forms: rename one of them"
            )
        rows += [(f"{folder}/{file}", name) for file in files if folder]
    return rows


def existing_files(root: Path, rows: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return listed files under their names on disk, which may differ in Unicode form.

    Raises:
        UsageError: if ``root`` is not a folder, or a file is missing.
    """
    if not root.is_dir():
        raise no_folder(root)
    names: dict[Path, dict[str, str]] = {}
    found, missing = [], []
    for file, label in sorted(rows, key=itemgetter(1, 0)):
        if not (root / file).is_file():
            path = root
            for part in PurePosixPath(file).parts:
                if path not in names:
                    names[path] = {normalize("NFC", name): name for name in (os.listdir(path) if path.is_dir() else ())}
                path /= names[path].get(normalize("NFC", part), part)
            if not path.is_file():
                missing.append(root / file)
                continue
            file = (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
        found.append((file, label))
    if missing:
        raise UsageError(
            f"expected {len(found) + len(missing)} listed files, but {missing[0]} is missing, the first of "
            f"{len(missing)}: complete {root}, or remove them from the list"
        )
    return found
