"""Store images on disk: one memory-mapped array per split, with an index of its classes."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from glob import escape
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pooch
from filelock import FileLock
from rich.progress import track

from metafew.data.duplicates import count_copies, find_copies, hash_image, without_copies
from metafew.data.formats.damage import UnreadableImages
from metafew.data.sources import LUMA, Category, Source
from metafew.data.summary import describe_duplicates, summarize
from metafew.errors import UsageError
from metafew.io import read_json, write_json

FORMAT = 3


def store_root(cache_dir: str | None) -> Path:
    """Return the folder of all stores: ``cache_dir``, by default a folder in the user's cache."""
    return Path(cache_dir or pooch.os_cache("metafew"))


def key_file(source: Source, root: Path) -> Path:
    """Return the file that names the store of ``source``; its own name depends on the source's files and options."""
    settings = (FORMAT, source.fingerprint(), source.duplicates == "drop")
    return root / "keys" / f"{source.name}-{checksum(settings)}.json"


def checksum(content: Any) -> str:
    """Return a 64-bit checksum of plain values."""
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def store_folder(source: Source, root: Path) -> Path | None:
    """Return the folder of the store of ``source``; None if it has not been built since its files changed."""
    return _named_by(key_file(source, root))


def _named_by(key: Path) -> Path | None:
    """Return the store that a key file names; None if there is none."""
    folder = key.parents[1] / read_json(key).get("store", key.parent.name)
    return folder if is_complete(folder) else None


def is_complete(folder: Path) -> bool:
    """Return whether a store has all of its files, some of which may have been removed since it was built."""
    if not (folder / "store.json").is_file():
        return False
    names = (f"{split}{kind}" for split in describe(folder)["splits"] for kind in (".npy", ".json", ".hashes.npy"))
    return all((folder / name).is_file() for name in names)


def build(source: Source, root: Path) -> Path:
    """Build the store of ``source`` below ``root`` unless it exists, and return its folder.

    The folder is named after its content. If files were copied or touched, images are read once more, and the existing
    store is used if their content is unchanged.

    Images are written to a temporary folder, which is renamed once it is complete, so that an interrupted build leaves
    nothing under the final name. If several processes start together, one builds and the others wait.

    Raises:
        UsageError: if the store has not been built and ``root`` cannot be written to, the images cannot be read or
            stored, or there are copies with ``dataset.duplicates=error``.
    """
    key = key_file(source, root)
    try:
        folder = _named_by(key)
        if folder is None:
            key.parent.mkdir(parents=True, exist_ok=True)
            lock = Path(f"{key}.lock")
            lock.touch()
    except OSError as error:
        raise UsageError(
            f"expected the store of dataset={source.title} in {root}, or a folder that can be written to, got neither "
            f"({error}): type cache_dir=PATH of a folder that can be written to"
        ) from error
    if folder is None:
        try:
            with FileLock(lock):
                folder = _named_by(key)
                if folder is None:
                    for left_over in root.glob(f"{escape(key.stem)}.*/"):
                        shutil.rmtree(left_over, ignore_errors=True)
                    folder = _build(source, root, key.stem)
                    write_json(key, {"store": folder.name})
        except OSError as error:
            raise UsageError(
                f"the images cannot be read, or cannot be stored in {root} ({error}): make room, or type cache_dir=PATH"
            ) from error
    if source.duplicates == "error" and (
        message := describe_duplicates(source, describe(folder)["summary"]["duplicates"])
    ):
        raise UsageError(message)
    return folder


def _build(source: Source, root: Path, name: str) -> Path:
    """Write the store of ``source`` to a temporary folder whose name starts with ``name``, and rename it."""
    check_space(source, root)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=root))
    try:
        classes, hashes, copies = _write_images(unfinished, source)
        splits = {
            split: {
                "classes": len(classes[split]),
                "images": len(hashes[split]),
                "sha256": pooch.file_hash(unfinished / f"{split}.npy"),
            }
            for split in classes
        }
        for split, of_split in classes.items():
            (unfinished / f"{split}.json").write_text(json.dumps(of_split), encoding="utf-8")
            np.save(unfinished / f"{split}.hashes.npy", hashes[split])
        description = {
            "format": FORMAT,
            "dataset": source.name,
            # The checksum of an array covers its shape and type.
            "fingerprint": checksum([classes, {split: entry["sha256"] for split, entry in splits.items()}]),
            "image_size": source.image_size,
            "channels": source.channels,
            "conversion": source.conversion and source.conversion.options,
            "splits": splits,
            "summary": summarize(source, splits, copies),
        }
        write_json(unfinished / "store.json", description)
        unfinished.chmod(0o755)  # others may share the cache
        return _rename(unfinished, root / f"{source.name}-{checksum(description)}")
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _rename(unfinished: Path, path: Path) -> Path:
    """Rename a complete store to ``path``, unless a store with the same content exists there; return ``path``."""
    if path.is_dir() and not is_complete(path):
        shutil.rmtree(path)
    try:
        os.replace(unfinished, path)
    except OSError:
        if not is_complete(path):
            raise
    return path


def check_space(source: Source, root: Path) -> None:
    """Raise UsageError if the store of ``source`` exceeds the free disk space."""
    size = source.channels * source.image_size**2 * np.dtype(source.dtype).itemsize
    needed = size * sum(len({key for c in categories for key in c.keys}) for categories in source.splits().values())
    if needed > (free := shutil.disk_usage(root).free):
        raise UsageError(
            f"the images need {needed / 1e9:.3g} GB with dataset.image_size={source.image_size}, but {root} has "
            f"{free / 1e9:.3g} GB left: type a smaller dataset.image_size, or cache_dir=PATH"
        )


def _write_images(folder: Path, source: Source) -> tuple[dict[str, list[dict]], dict[str, np.ndarray], dict]:
    """Write the array of each split; return, by split, the classes with rows as keys, and the hashes; and the copies.

    Raises:
        UnreadableImages: with the damaged images of all splits.
    """
    classes: dict[str, list[dict]] = {}
    keys, hashes, errors = {}, {}, []
    for split, categories in source.splits().items():
        rows = {key: row for row, key in enumerate(dict.fromkeys(key for c in categories for key in c.keys))}
        images = track(source.read(list(rows)), f"{source.name}: {split} images", total=len(rows), transient=True)
        try:
            hashes[split] = _write_array(folder / f"{split}.npy", images, len(rows), source)
        except UnreadableImages as error:
            errors.append(error)
        classes[split] = [c._asdict() | {"keys": [rows[key] for key in c.keys]} for c in categories]
        keys[split] = list(rows)
    if errors:
        raise UnreadableImages.joined(errors)
    groups = find_copies(classes, hashes)
    copies = count_copies(groups, lambda split, row: source.describe(keys[split][row]))
    if groups and source.duplicates == "drop":
        for split, of_split in without_copies(classes, groups).items():
            kept = sorted({row for each in of_split for row in each["keys"]})
            new = {row: number for number, row in enumerate(kept)}
            stored = np.load(folder / f"{split}.npy", mmap_mode="r")
            _write_array(folder / "kept.npy", (stored[row] for row in kept), len(kept), source)
            os.replace(folder / "kept.npy", folder / f"{split}.npy")
            classes[split] = [each | {"keys": [new[row] for row in each["keys"]]} for each in of_split]
            hashes[split] = hashes[split][kept]
    return classes, hashes, copies


def _write_array(path: Path, images: Iterable[np.ndarray], count: int, source: Source) -> np.ndarray:
    """Write ``count`` images of ``source`` and return their hashes, uint64."""
    shape, hashes = (source.channels, source.image_size, source.image_size), np.empty(count, np.uint64)
    with path.open("wb") as file:
        # Written one by one, as the pages of a memory map would count as memory of the process.
        header = {"descr": np.dtype(source.dtype).str, "fortran_order": False, "shape": (count, *shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for row, image in zip(range(count), images, strict=True):
            content = np.asarray(image, source.dtype).reshape(shape).tobytes()
            hashes[row] = hash_image(content)
            file.write(content)
    return hashes


def describe(folder: Path) -> dict[str, Any]:
    """Return the content of the store.json of a store."""
    return json.loads((folder / "store.json").read_text(encoding="utf-8"))


def summary_of(source: Source, folder: Path) -> dict[str, Any]:
    """Return the fingerprint and the summary of the store of ``source``."""
    content = describe(folder)
    ignored = dict(source.ignored)  # current values: these files do not affect the store
    return {"fingerprint": content["fingerprint"], **content["summary"], "ignored": ignored}


def verify(folder: Path) -> None:
    """Raise UsageError if the images of a store have changed since they were written."""
    for split, description in describe(folder)["splits"].items():
        if pooch.file_hash(folder / f"{split}.npy") != description["sha256"]:
            raise UsageError(f"the {split} images in {folder} have changed since they were written: delete that folder")


class Split:
    """The images of one split, read on demand. Its copy in another process maps the same files to memory.

    Args:
        folder: a store.
        split: ``train``, ``val`` or ``test``.
        channels: number of channels to convert images to, 1 or 3; None leaves them unchanged.

    Attributes:
        images: ``(n, c, h, w)``, memory-mapped.
        names: the name of each class.
        groups: the group of each class.
        rows: the rows of the images of each class.
        turns: ``(classes,)`` numbers of quarter turns to apply to the images of each class.
    """

    def __init__(self, folder: Path, split: str, channels: int | None = None):
        self._arguments = folder.absolute(), split, channels
        classes = json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))
        self.hold(np.load(folder / f"{split}.npy", mmap_mode="r"), channels, [Category(**c) for c in classes])

    def hold(self, images: np.ndarray, channels: int | None, categories: Sequence[Category]) -> None:
        """Set the attributes, for constructors."""
        self.images = images
        self.channels = channels or images.shape[1]
        self.names = [c.name for c in categories]
        self.groups = [c.group for c in categories]
        self.rows = [np.asarray(c.keys) for c in categories]
        self.turns = np.asarray([c.turns for c in categories])

    def __reduce__(self) -> tuple:
        return Split, self._arguments  # pickling a memory map would write all of its values

    @property
    def categories(self) -> list[Category]:
        """The classes, with rows as the keys of their images."""
        described = zip(self.names, self.rows, self.turns.tolist(), self.groups, strict=True)
        return [Category(name, tuple(rows.tolist()), turns, group) for name, rows, turns, group in described]

    def ids(self, rows: np.ndarray, turns: np.ndarray) -> np.ndarray:
        """Return an integer for each image that identifies the image and its rotation within the split."""
        return rows + turns * len(self.images)

    def gather(self, rows: np.ndarray, turns: np.ndarray) -> np.ndarray:
        """Return images ``(..., c, h, w)``, each rotated counter-clockwise by its number of quarter turns.

        Args:
            rows: ``(...)`` rows of the images.
            turns: ``(...)`` numbers of quarter turns.
        """
        images = np.asarray(self.images).take(rows, 0)  # indexing the memory map directly takes twice as long
        if self.channels > images.shape[-3]:
            images = images.repeat(self.channels, axis=-3)
        elif self.channels < images.shape[-3]:
            images = np.stack([luma(task) for task in images])  # one by one: products are float64, 8 times as large
        for turn in np.unique(turns[turns > 0]):
            images[turns == turn] = np.rot90(images[turns == turn], turn, axes=(2, 3))
        return images


def luma(images: np.ndarray) -> np.ndarray:
    """Return the luma ``(..., 1, h, w)`` of colour images ``(..., 3, h, w)``."""
    return np.rint(np.tensordot(images, LUMA, (-3, 0)))[..., None, :, :].astype(images.dtype)
