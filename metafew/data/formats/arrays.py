"""Arrays of images with labels: in memory, in .npz files and in pickles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile
from zlib import error as ZlibError

import numpy as np
from PIL import Image

from metafew.data.formats.images import decode
from metafew.data.formats.pickles import unpickle
from metafew.errors import UsageError

IMAGES = ("images", "image_data", "data", "x")
LABELS = ("labels", "targets", "y", "label_specific")


class Labelled(NamedTuple):
    """What a file of images and labels holds.

    Attributes:
        images: Loads the images.
        labels: (n,) integers or strings.
        names: The class name of each label, where the file has them.
    """

    images: Callable[[], Sequence[Any]]
    labels: np.ndarray
    names: dict[Any, str] | None


class Arrays:
    """Images of classes in an array; keys are row numbers.

    Args:
        images: uint8 of shape (n, h, w) or (n, h, w, 1 or 3), or whatever else gives an image for a row number, such
            as a memory-mapped array or a list of encoded images; or a function that loads it. The function is called
            by each `open`, and what it loads is let go of after the last image.
        labels: (n,) integers or strings.
        names: The class name of each label. None takes the labels themselves.
        files: The files that the images come from.
    """

    def __init__(
        self,
        images: Sequence[Any] | np.ndarray | Callable[[], Sequence[Any]],
        labels: Sequence[Any] | np.ndarray,
        names: Mapping[Any, str] | None,
        files: Sequence[Path],
    ):
        self.images, self.files = images, tuple(files)
        rows: dict[Any, list[int]] = {}
        for row, label in enumerate(np.asarray(labels).tolist()):
            rows.setdefault(label, []).append(row)
        self.count = len(labels)
        self.classes = {str(names[label] if names else label): tuple(rows[label]) for label in sorted(rows)}

    def open(self, keys: Sequence[int]) -> Iterator[Image.Image | np.ndarray]:
        """Read the images of rows, in the order of `keys`.

        Raises:
            UsageError: There are not as many images as labels, or an image is none.
        """
        images = self.images() if callable(self.images) else self.images
        where = " and ".join(map(str, self.files)) or "the array"
        if len(images) != self.count:
            raise UsageError(
                f"{where} should hold one label an image and has {self.count} labels for {len(images)} images: "
                "replace it"
            )
        for row in keys:
            yield picture(images[row], f"image {row} of {where}")


def picture(content: bytes | np.ndarray, name: str) -> Image.Image | np.ndarray:
    """Return pixels as they are, and decode an encoded image: bytes, or uint8 of shape (n,) or, by OpenCV, (n, 1)."""
    if isinstance(content, bytes):
        return decode(BytesIO(content), name)
    pixels = np.asarray(content)
    if pixels.dtype != np.uint8 or pixels.ndim > 3 or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise UsageError(
            f"{name} should be uint8 of shape (h, w) or (h, w, 1 or 3) and is {pixels.dtype} of shape {pixels.shape}: "
            "convert the file"
        )
    return decode(BytesIO(pixels.tobytes()), name) if pixels.ndim < 2 or pixels.shape[1:] == (1,) else pixels


def read_npz(file: Path) -> Labelled:
    """Read the labels of an .npz file, 'labels', 'targets', 'y' or 'label_specific', which lie beside its images.

    Raises:
        UsageError: The file is damaged, or holds no such arrays.
    """
    with opened(file) as arrays:
        labels = one_dimensional(arrays[choose(arrays, LABELS, "labels", file)], file)
    return Labelled(images_of(file), labels, None)


def images_of(file: Path) -> Callable[[], np.ndarray]:
    """Return what loads the images of an .npz file: 'images', 'image_data', 'data' or 'x'.

    Raises:
        UsageError: The file is damaged, or holds no such array.
    """
    with opened(file) as arrays:
        name = choose(arrays, IMAGES, "images", file)

    def load() -> np.ndarray:
        with opened(file) as arrays:
            return arrays[name]

    return load


def read_pickle(file: Path) -> Labelled:
    """Read the labels of a pickled dictionary of images, which have the same names as in an .npz file.

    The labels are an array of their own, named by 'catname2label' if at all, or rows of images: 'class_dict'.

    Raises:
        UsageError: The file is damaged, or holds no such dictionary.
    """
    content = dictionary(file, str(file))
    image = choose(content, IMAGES, "images", file)
    try:
        if "class_dict" in content:
            labels, names = of_rows(content["class_dict"], len(content[image]))
        else:
            labels = one_dimensional(np.asarray(content[choose(content, LABELS, "labels", file)]), file)
            names = {label: str(name) for name, label in content.get("catname2label", {}).items()} or None
        if names and (unnamed := set(labels.tolist()) - set(names)):
            raise ValueError(f"catname2label lacks {min(unnamed)}")
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise UsageError(
            f"{file} should give each image one label or place in class_dict and does not ({type(error).__name__}: "
            f"{error}): replace it"
        ) from error
    return Labelled(lambda: dictionary(file, str(file))[image], labels, names)


def dictionary(pickled: bytes | Path, name: str) -> dict[str, Any]:
    """Return the dictionary of a pickle that sentences call `name`; `UsageError` where it holds something else."""
    content = unpickle(pickled)
    if not isinstance(content, Mapping):
        raise UsageError(f"{name} should hold a dictionary and holds a {type(content).__name__}: replace it")
    return {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}


def of_rows(rows: Mapping[str, Sequence[int]], count: int) -> tuple[np.ndarray, dict[int, str]]:
    """Return the labels of `count` images from the rows of each class, and the name of each label."""
    labels = np.full(count, -1)
    for label, members in enumerate(rows.values()):
        labels[np.asarray(members, int)] = label
    if (labels < 0).any():
        raise ValueError(f"class_dict lacks image {np.argmin(labels)}")
    return labels, dict(enumerate(map(str, rows)))


def choose(content: Mapping[str, Any], usual: Sequence[str], what: str, file: Path) -> str:
    """Return the usual name that `content` has, or raise `UsageError`."""
    found = next((name for name in usual if name in content), None)
    if found is None:
        raise UsageError(
            f"{file} should hold {what} under the name {' or '.join(usual)}, and holds "
            f"{', '.join(map(str, content)) or 'nothing'}: replace it"
        )
    return found


def one_dimensional(labels: np.ndarray, file: Path) -> np.ndarray:
    """Return labels, or raise `UsageError` where they are not integers or strings in a row."""
    if labels.ndim != 1 or labels.dtype.kind not in "iuU":
        raise UsageError(
            f"the labels in {file} should be integers or strings of shape (n,) and are {labels.dtype} of shape "
            f"{labels.shape}: replace it"
        )
    return labels


@contextmanager
def opened(file: Path) -> Iterator[Mapping[str, np.ndarray]]:
    """Open an .npz file; what numpy objects to becomes a sentence."""
    try:
        arrays = np.load(file, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        with arrays:
            yield arrays
    except (BadZipFile, EOFError, OSError, ValueError, ZlibError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UsageError(
            f"{file} should be an .npz file of arrays and cannot be read as one ({reason}): replace it with a good copy"
        ) from error
