"""Read arrays of images with labels from memory, .npz files and pickles."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile
from zlib import error as ZlibError

import numpy as np
from PIL import Image

from metafew.data.formats.damage import explain_damage
from metafew.data.formats.images import decode
from metafew.data.formats.labels import class_labels
from metafew.data.formats.names import class_name, natural_order
from metafew.data.formats.pickles import unpickle
from metafew.errors import UsageError

IMAGES = ("images", "image_data", "data", "x")
LABELS = ("labels", "targets", "y", "label_specific")
ImageSequence = Sequence[Any] | np.ndarray
"""Decoded or encoded images."""

log = logging.getLogger(__name__)


class LabelledFile(NamedTuple):
    """The content of a file of images and labels.

    Attributes:
        images: a function that loads the images.
        labels: ``(n,)`` integers or strings.
        names: the class name of each label, or None if the file contains none.
        ignored: the arrays that are not read.
    """

    images: Callable[[], ImageSequence]
    labels: np.ndarray
    names: dict[Any, str] | None
    ignored: Mapping[str, int]


class Arrays:
    """Labelled images in an array; keys are row numbers.

    Args:
        images: uint8 ``(n, h, w)`` or ``(n, h, w, 1 or 3)``, or any sequence of images such as a memory-mapped array or
            a list of encoded images; or a function that loads it. Each :meth:`open` calls the function, and releases
            its result after the last image.
        labels: ``(n,)`` integers or strings.
        names: the class name of each label; None uses the labels themselves.
        files: the files of the images.
        ignored: the arrays of the files that are not read.

    Raises:
        UsageError: if two labels have the same name.
    """

    def __init__(
        self,
        images: ImageSequence | Callable[[], ImageSequence],
        labels: Sequence[Any] | np.ndarray,
        names: Mapping[Any, str] | None,
        files: Sequence[Path],
        ignored: Mapping[str, int] | None = None,
    ):
        self.images, self.files, self.count, self.ignored = images, tuple(files), len(labels), ignored or {}
        rows: dict[Any, list[int]] = {}
        for row, label in enumerate(np.asarray(labels).tolist()):
            rows.setdefault(label, []).append(row)
        ordered = sorted(rows, key=lambda label: natural_order(label) if isinstance(label, str) else label)
        self.classes = {class_name(names[label] if names else label): tuple(rows[label]) for label in ordered}
        if len(self.classes) < len(rows):
            where = " and ".join(map(str, self.files)) or "the array"
            raise UsageError(
                f"expected a different name for each label in {where}, got {len(self.classes)} names of {len(rows)} "
                "labels, some perhaps in different Unicode forms: correct the file"
            )

    def open(self, keys: Sequence[int]) -> Iterator[Image.Image | np.ndarray]:
        """Read the images of rows, in the order of ``keys``.

        Raises:
            UsageError: if images and labels differ in number, or an element is not an image.
        """
        images = self.images() if callable(self.images) else self.images
        where = " and ".join(map(str, self.files)) or "the array"
        if len(images) != self.count:
            raise UsageError(
                f"expected one label for each image in {where}, got {self.count} labels for {len(images)} images: "
                "replace it"
            )
        return map(lambda row: _as_image(images[row], f"image {row} of {where}"), keys)


def _as_image(content: bytes | np.ndarray, name: str) -> Image.Image | np.ndarray:
    """Return pixels unchanged, and decode an encoded image: bytes, or uint8 ``(n,)`` or, by OpenCV, ``(n, 1)``."""
    if isinstance(content, bytes):
        return decode(BytesIO(content), name)
    pixels = np.asarray(content)
    if pixels.dtype != np.uint8 or pixels.ndim > 3 or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise UsageError(
            f"expected {name} to be uint8 of shape (h, w) or (h, w, 1 or 3), got {pixels.dtype} of shape "
            f"{pixels.shape}: convert the file"
        )
    return decode(BytesIO(pixels.tobytes()), name) if pixels.ndim < 2 or pixels.shape[1:] == (1,) else pixels


def read_npz(file: Path) -> LabelledFile:
    """Read an .npz file of images and labels under the names :data:`IMAGES` and :data:`LABELS`.

    An array ``names``, if there is one, has the class names of labels 0, 1, ...
    """
    with open_npz(file) as arrays:
        used = find_name(arrays, LABELS)
        labels = class_labels(read_array(arrays, used, file), f"{used} of {file}")
        ignored = unused_arrays(file, arrays, (used, find_name(arrays, IMAGES), "names"))
        names = _names_of_labels(read_array(arrays, "names", file), labels, file) if "names" in arrays else None
    return LabelledFile(npz_images(file), labels, names, ignored)


def _names_of_labels(words: np.ndarray, labels: np.ndarray, file: Path) -> dict[Any, str]:
    """Return the class names of labels 0, 1, ...; raises UsageError unless each label has a name of its own."""
    names = dict(enumerate(map(class_name, class_labels(words.ravel(), f"names of {file}"))))
    unnamed = sorted(set(labels.tolist()) - set(names), key=str)
    if unnamed or len(set(names.values())) < len(names):
        problem = f"none for label {unnamed[0]}" if unnamed else "the same twice"
        raise UsageError(
            f"expected names in {file} to be a different name for each label, got {len(names)}, {problem}: correct the "
            "file"
        )
    return names


def npz_images(file: Path) -> Callable[[], np.ndarray]:
    """Return a function that loads the images of an .npz file; raises UsageError if there are none."""
    with open_npz(file) as arrays:
        name = find_name(arrays, IMAGES)

    def load() -> np.ndarray:
        with open_npz(file) as arrays:
            return read_array(arrays, name, file)

    return load


def read_pickle(file: Path) -> LabelledFile:
    """Read a pickled dictionary of images and labels, under the same names as in an .npz file.

    Labels are given as an array, optionally with class names in ``catname2label``, or as the rows of each class in
    ``class_dict``.
    """
    content = read_dictionary(file)
    kind = "images with one label each, or a place in class_dict"
    with explain_damage(file, kind, AttributeError, IndexError, TypeError, ValueError):
        image = find_name(content, IMAGES)
        if "class_dict" in content:
            labels, names = _labels_of_rows(content["class_dict"], len(content[image]))
        else:
            labels = class_labels(content[find_name(content, LABELS)], f"the labels of {file}")
            names = {label: str(name) for name, label in content.get("catname2label", {}).items()} or None
        if names and (unnamed := set(labels.tolist()) - set(names)):
            raise ValueError(f"catname2label lacks {min(unnamed)}")
    return LabelledFile(lambda: read_dictionary(file)[image], labels, names, {})


def read_dictionary(pickled: bytes | Path, name: str | None = None) -> dict[str, Any]:
    """Return the dictionary in a pickle, named ``name`` in error messages; raises UsageError for other content."""
    content = unpickle(pickled, name)
    if not isinstance(content, Mapping):
        where = name or (pickled if isinstance(pickled, Path) else "the pickle")
        raise UsageError(f"expected {where} to hold a dictionary, got a {type(content).__name__}: replace it")
    return {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}


def _labels_of_rows(rows: Mapping[str, Sequence[int]], count: int) -> tuple[np.ndarray, dict[int, str]]:
    """Return the labels of ``count`` images, given the rows of each class, and the name of each label."""
    labels = np.full(count, -1)
    for label, members in enumerate(rows.values()):
        labels[np.asarray(members, int)] = label
    if (labels < 0).any():
        raise ValueError(f"class_dict lacks image {np.argmin(labels)}")
    return labels, dict(enumerate(map(str, rows)))


def find_name(content: Mapping[str, Any], usual: Sequence[str]) -> str:
    """Return the first of the ``usual`` names in ``content``; raises ValueError if there is none."""
    found = next((name for name in usual if name in content), None)
    if found is None:
        raise ValueError(f"it lacks {' or '.join(usual)} among {', '.join(map(str, content)) or 'nothing'}")
    return found


def unused_arrays(file: Path, arrays: Mapping[str, np.ndarray], used: Sequence[str]) -> dict[str, int]:
    """Return the unused arrays of a file, each counted once, and log a warning about them."""
    unused = sorted(set(arrays) - set(used))
    if unused:
        log.warning("%s has arrays that are not read: %s", file, ", ".join(unused))
    return {f"array {name} of {file.name}": 1 for name in unused}


def read_array(arrays: Mapping[str, np.ndarray], name: str, file: Path) -> np.ndarray:
    """Return an array of an .npz file; raises UsageError if it contains Python objects."""
    try:
        return arrays[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise UsageError(
            f"expected numbers or strings in {name} of {file}, got Python objects, which may run code: save it as "
            f"{name}=numpy.asarray({name}.tolist())"
        ) from error


@contextmanager
def open_npz(file: Path) -> Iterator[Mapping[str, np.ndarray]]:
    """Open an .npz file; raises UsageError if NumPy cannot read it."""
    with (
        explain_damage(file, "an .npz file of arrays", BadZipFile, EOFError, OSError, ValueError, ZlibError),
        file.open("rb") as stream,  # NumPy would leave a damaged file open
    ):
        arrays = np.load(stream, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        with arrays:
            yield arrays
