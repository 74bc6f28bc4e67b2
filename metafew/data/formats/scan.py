"""List the image files below a folder, and count everything that is not read."""

from __future__ import annotations

import logging
import os
import shlex
from collections import Counter
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import NoReturn

from metafew.errors import UsageError

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".ppm", ".pgm", ".pbm", ".pnm",
    ".bmp", ".webp", ".gif", ".tif", ".tiff",
)  # fmt: skip
SYSTEM = (
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information",
    "lost+found", "@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "__pycache__",
)  # fmt: skip
"""Files and folders created by operating systems and network storage, in lower case."""
NOTES = (".txt", ".csv", ".tsv", ".json", ".xml", ".md", ".html", ".yaml", ".yml", ".log")
"""Suffixes of files that accompany images but are never images."""
ARCHIVES = {".zip": "zipfile"} | dict.fromkeys((".tar", ".tgz", ".gz", ".bz2", ".xz"), "tarfile")
"""Suffixes of archives, and the modules of Python that unpack them."""
FOLDER, FILE, DEAD = "folder", "file", "link to a missing file:"
NAMED = 4  # places named per reason; the others are counted

log = logging.getLogger(__name__)


class Scan:
    """The image files below a folder, and what is not read.

    Links are followed, but no folder is read twice: of its names, the first without links is used, or else the first.
    :func:`hidden` files and folders are not read.

    Args:
        root: the folder.
        within: the names of the folders in ``root`` to read; None reads all of them.

    Attributes:
        images: the names of the image files in each folder with images, by its path relative to ``root``; ``""`` is
            ``root`` itself.
        twice: links to folders that are read under another name.

    Raises:
        UsageError: if ``root`` is not a folder, or a folder cannot be listed.
    """

    def __init__(self, root: Path, within: Collection[str] | None = None):
        if not root.is_dir():
            raise no_folder(root)
        self.root, self.images, self.twice = root, dict[str, list[str]](), list[str]()
        self._within, self._folders, self._ignored = within, list[str](), dict[str, Counter[str]]()
        visited: set[str] = set()
        links = self._read("", visited)
        while links:
            first, *others = sorted(links)
            links = others + self._read(first, visited)

    def ignore(self, reason: str, place: str, count: int = 1) -> None:
        """Count files or folders that are not read."""
        self._ignored.setdefault(reason, Counter())[place] += count

    @property
    def empty(self) -> list[str]:
        """The topmost folders that have no images in or below them."""
        holding = {"."} | {str(path) for folder in self.images for path in (folder, *PurePosixPath(folder).parents)}
        return [f for f in self._folders if f not in holding and str(PurePosixPath(f).parent) in holding]

    def dead_links(self) -> list[str]:
        """Return the dead links directly in ``root``, which may have led to folders."""
        return [name for name in self._ignored.get(DEAD, ()) if "/" not in name and not name.lower().endswith(SUFFIXES)]

    @property
    def ignored(self) -> dict[str, int]:
        """The numbers of files and folders that are not read, by reason and place."""
        return {name: count for found in self._reasons().values() for name, count in found.items()}

    def warn(self) -> None:
        """Warn about what is not read, except hidden files and notes."""
        minor = ("hidden ", *(f"*{suffix} " for suffix in NOTES))
        missed = [
            f"{name} ({count})"
            for reason, found in self._reasons().items()
            for name, count in found.items()
            if not reason.startswith(minor)
        ]
        if missed:
            log.warning("%s has files or folders that are not read: %s", self.root, ", ".join(missed))

    def _reasons(self) -> dict[str, dict[str, int]]:
        """Return the numbers of files and folders that are not read, by reason, and by reason and place."""
        empty = {"folder without images:": dict.fromkeys(self.empty, 1)} if self.empty else {}
        named: dict[str, dict[str, int]] = {}
        for reason, places in sorted((empty | self._ignored).items()):
            shown = sorted(places)[:NAMED]
            named[reason] = {f"{reason} {place}": places[place] for place in shown}
            if others := len(places) - len(shown):
                named[reason][f"{reason} {others} more"] = sum(places.values()) - sum(places[place] for place in shown)
        return named

    def _read(self, start: str, visited: set[str]) -> list[str]:
        """Read a folder and those below it, and return the links to folders inside."""
        links: list[str] = []
        pending = [start]
        while pending:
            folder = pending.pop()
            path = os.path.join(self.root, folder)
            if (real := os.path.realpath(path)) in visited:
                self.twice.append(folder)
                self.ignore("link to a folder that is read under another name:", folder)
                continue
            visited.add(real)
            if folder:
                self._folders.append(folder)
            try:
                with os.scandir(path) as found:
                    entries = sorted(found, key=lambda entry: entry.name)
            except OSError as error:
                raise_unreadable(error)
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                kind = _kind(entry)
                if hidden(entry.name):
                    self.ignore(f"hidden {'folder' if kind == FOLDER else 'file'}", _junk(entry.name))
                elif kind == FOLDER and not folder and self._within is not None and entry.name not in self._within:
                    self.ignore("folder beside those of the splits:", name)
                elif kind == FOLDER:
                    (links if entry.is_symlink() else pending).append(name)
                elif kind != FILE:
                    self.ignore(kind, name)
                elif name.lower().endswith(SUFFIXES):
                    self.images.setdefault(folder, []).append(entry.name)
                else:
                    suffix = PurePosixPath(name).suffix.lower()
                    self.ignore(f"*{suffix} in" if suffix else "file without suffix in", folder or self.root.name)
        return links


def _kind(entry: os.DirEntry) -> str:
    """Return the kind of an entry after following links: :data:`FOLDER`, :data:`FILE`, or why it is not read."""
    try:
        if entry.is_dir():
            return FOLDER
        if entry.is_file():
            return FILE
        if not entry.is_symlink() or os.path.exists(entry):
            return "pipe, socket or device:"
    except OSError:  # circular links
        pass
    return DEAD


def no_folder(root: Path) -> UsageError:
    """Return the error for a path that is not a folder, with the way to unpack an archive."""
    module = ARCHIVES.get(root.suffix.lower())
    if module is None or not root.is_file():
        return UsageError(f"expected a folder of images, but {root} is not a folder: type the path of one")
    folder = root.with_name(root.name.partition(".")[0] or "images")
    unpack = shlex.join(["python", "-m", module, "-e", str(root), str(folder)])
    return UsageError(
        f"expected a folder of images, got the archive {root}: unpack it with {unpack}, and give the folder {folder}"
    )


def hidden(name: str) -> bool:
    """Return whether a file or folder is hidden or created by the system, such as .DS_Store or @eaDir."""
    return name.startswith(".") or name.lower() in SYSTEM


def _junk(name: str) -> str:
    """Return the name under which a hidden file is counted; macOS adds a file ._NAME to every file."""
    return "._*" if name.startswith("._") else name


def raise_unreadable(error: OSError) -> NoReturn:
    """Raise the UsageError for a folder that cannot be listed."""
    raise UsageError(
        f"{error.filename} cannot be listed ({error.strerror}): make it readable, or move it elsewhere"
    ) from error
