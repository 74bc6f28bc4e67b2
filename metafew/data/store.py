"""Store images on disk: a memory-mapped array for each split, and an index of its classes."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from glob import escape
from hashlib import sha256
from pathlib import Path

import numpy as np
import pooch
from filelock import FileLock
from rich.progress import track

from metafew.data.formats.damage import UnreadableImages
from metafew.data.formats.remarks import remarks
from metafew.data.sources import LUMA, Category, Source
from metafew.errors import UsageError
from metafew.io import write_json

FORMAT = 3


def store_root(cache_dir: str | None) -> Path:
    """Return the folder of all stores: ``cache_dir``, or by default a folder in the user's cache."""
    return Path(cache_dir or pooch.os_cache("metafew"))


def store_folder(source: Source, root: Path) -> Path:
    """Return the folder of the store of ``source``; its name changes with the source's files and options."""
    key = sha256(f"{FORMAT} {source.fingerprint()}".encode()).hexdigest()[:16]
    return root / f"{source.name}-{key}"


def build(source: Source, root: Path) -> Path:
    """Build the store of ``source`` below ``root`` unless it exists, and return its folder.

    Images are written to a temporary folder, which is renamed once it is complete: an interrupted build leaves nothing
    under the final name. If several processes start together, one builds and the others wait.

    Raises:
        UsageError: if the images cannot be read or stored.
    """
    path = store_folder(source, root)
    if path.exists():
        return path
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                for left_over in root.glob(f"{escape(path.name)}.*/"):
                    shutil.rmtree(left_over, ignore_errors=True)
                _build(source, path)
    except OSError as error:
        raise UsageError(
            f"the images cannot be read, or cannot be stored in {root} ({error}): make room, or type cache_dir=PATH"
        ) from error
    return path


def _build(source: Source, path: Path) -> None:
    """Write the store of ``source`` to a temporary folder, and rename it to ``path``."""
    splits = source.splits()
    size = source.channels * source.image_size**2 * np.dtype(source.dtype).itemsize
    needed = size * sum(len({key for c in categories for key in c.keys}) for categories in splits.values())
    if needed > (free := shutil.disk_usage(path.parent).free):
        raise UsageError(
            f"the images need {needed / 1e9:.3g} GB with dataset.image_size={source.image_size}, but {path.parent} has "
            f"{free / 1e9:.3g} GB left: type a smaller dataset.image_size, or cache_dir=PATH"
        )
    unfinished = Path(tempfile.mkdtemp(prefix=f"{path.name}.", dir=path.parent))
    try:
        description = {
            "format": FORMAT,
            "dataset": source.name,
            "fingerprint": source.fingerprint(),
            "image_size": source.image_size,
            "channels": source.channels,
            "splits": _write_splits(unfinished, splits, source),
            "conversion": source.conversion and source.conversion.options,
            "summary": {"seen": source.seen},
        }
        write_json(unfinished / "store.json", description)
        unfinished.chmod(0o755)  # others may share the cache
        os.replace(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_splits(folder: Path, splits: Mapping[str, Sequence[Category]], source: Source) -> dict:
    """Write all splits and return their entries in store.json; raises UnreadableImages that lists those of all."""
    entries, faults = {}, []
    for split, categories in splits.items():
        try:
            entries[split] = _write_split(folder, split, categories, source)
        except UnreadableImages as error:
            faults += error.faults
    if faults:
        raise UnreadableImages(faults)
    return entries


def _write_split(folder: Path, split: str, categories: Sequence[Category], source: Source) -> dict:
    """Write the array and the index of one split; return its entry in store.json."""
    rows = {key: row for row, key in enumerate(dict.fromkeys(key for c in categories for key in c.keys))}
    shape = (source.channels, source.image_size, source.image_size)
    images = track(source.read(list(rows)), f"{source.name}: {split} images", total=len(rows), transient=True)
    with (folder / f"{split}.npy").open("wb") as file:
        # Written one by one, because the pages of a memory map would count as memory used by the process.
        header = {"descr": np.dtype(source.dtype).str, "fortran_order": False, "shape": (len(rows), *shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for _, image in zip(rows, images, strict=True):
            file.write(np.asarray(image, source.dtype).reshape(shape).tobytes())
    index = [category._asdict() | {"keys": [rows[key] for key in category.keys]} for category in categories]
    (folder / f"{split}.json").write_text(json.dumps(index), encoding="utf-8")
    return {"classes": len(categories), "images": len(rows), "sha256": pooch.file_hash(folder / f"{split}.npy")}


def describe(folder: Path) -> dict:
    """Return the content of the store.json of a store."""
    return json.loads((folder / "store.json").read_text(encoding="utf-8"))


def remarks_on(source: Source, folder: Path) -> list[str]:
    """Return what the user should know of the images in the store of ``source``, if they are the user's own."""
    seen = describe(folder)["summary"]["seen"] if source.own_images else {}
    return [f"dataset={source.title}: {remark}" for remark in remarks(seen)]


def verify(folder: Path) -> None:
    """Raise UsageError if the images of a store have changed since they were written."""
    for split, description in describe(folder)["splits"].items():
        if pooch.file_hash(folder / f"{split}.npy") != description["sha256"]:
            raise UsageError(f"the {split} images in {folder} have changed since they were written: delete that folder")


class Split:
    """The images of one split, read on demand.

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
        classes = json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))
        self.images = np.load(folder / f"{split}.npy", mmap_mode="r")
        self.channels = channels or self.images.shape[1]
        self.names = [c["name"] for c in classes]
        self.groups = [c["group"] for c in classes]
        self.rows = [np.asarray(c["keys"]) for c in classes]
        self.turns = np.asarray([c["turns"] for c in classes])

    def ids(self, rows: np.ndarray, turns: np.ndarray) -> np.ndarray:
        """Return an integer for each image that identifies the image and its rotation within the split."""
        return rows + turns * len(self.images)

    def gather(self, rows: np.ndarray, turns: np.ndarray) -> np.ndarray:
        """Return images ``(..., c, h, w)``, each rotated counter-clockwise by its number of quarter turns.

        Args:
            rows: ``(...)`` rows of the images.
            turns: ``(...)`` numbers of quarter turns.
        """
        images = np.asarray(self.images).take(rows, 0)  # indexing the memory map itself takes twice as long
        if self.channels > images.shape[-3]:
            images = images.repeat(self.channels, axis=-3)
        elif self.channels < images.shape[-3]:
            images = np.stack([luma(task) for task in images])  # one by one: the products are float64, 8 times as large
        for turn in np.unique(turns[turns > 0]):
            images[turns == turn] = np.rot90(images[turns == turn], turn, axes=(2, 3))
        return images


def luma(images: np.ndarray) -> np.ndarray:
    """Return the luma ``(..., 1, h, w)`` of colour images ``(..., 3, h, w)``."""
    return np.rint(np.tensordot(images, LUMA, (-3, 0)))[..., None, :, :].astype(images.dtype)
