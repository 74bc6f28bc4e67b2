"""Read parquet files as written by Hugging Face: a column of encoded images and a column of labels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import accumulate
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from PIL import Image

from metafew.config.quoting import to_paste
from metafew.data.formats.damage import explain_damage
from metafew.data.formats.images import decode
from metafew.data.formats.labels import class_labels
from metafew.data.formats.names import class_name
from metafew.errors import UsageError

if TYPE_CHECKING:
    from pyarrow import Schema
    from pyarrow.parquet import ParquetFile

IMAGES = ("image", "img")
LABELS = ("label", "labels", "fine_label", "class")
Label = int | float | str | bytes


class Parquet:
    """Labelled images in parquet files; a key consists of a file number and a row.

    The image column contains encoded bytes, or structs with a field ``bytes``; it is named ``image`` or ``img``, or is
    the only such column. Class names come from metadata written by the ``datasets`` library, or else are the labels
    themselves. Rows without a label (null, or -1 among named classes) are left out.

    Args:
        files: the files.
        label: the label column, of integers, strings, bytes or booleans; None for ``label``, ``labels``, ``fine_label``
            or ``class``, or else the only such column.

    Raises:
        UsageError: if pyarrow is not installed, or a file is damaged or lacks these columns.
    """

    def __init__(self, files: Sequence[Path], label: str | None = None):
        self.files = tuple(files)
        classes: dict[str, list[tuple[int, int]]] = {}
        self.ignored: dict[str, int] = {}
        for number, file in enumerate(self.files):
            with _open_parquet(file) as parquet:
                column = _label_column(parquet.schema_arrow, label, file)
                values = parquet.read([column]).column(0).to_pylist()
                names = _class_names(parquet.schema_arrow, column, values, file)
            for name in names.values():
                classes.setdefault(name, [])
            for row, value in enumerate(values):
                if value in names:
                    classes[names[value]].append((number, row))
                else:
                    reason = f"row without a label in {file.name}"
                    self.ignored[reason] = self.ignored.get(reason, 0) + 1
        self.classes = {name: tuple(keys) for name, keys in classes.items() if keys}

    def open(self, keys: Sequence[tuple[int, int]]) -> Iterator[Image.Image]:
        """Read images in the order of ``keys``.

        The rows of a class may be scattered. Each row group is read once, and encoded images are kept in a temporary
        file until they are yielded.

        Raises:
            UnreadableImages: for each damaged image.
            UsageError: if a file is damaged.
        """
        return map(lambda row: decode(*row), self._encoded(keys))

    def _encoded(self, keys: Sequence[tuple[int, int]]) -> Iterator[tuple[BytesIO, str]]:
        """Yield the encoded images of ``keys`` with their names."""
        rows: dict[int, set[int]] = {}
        for number, row in keys:
            rows.setdefault(number, set()).add(row)
        stored = {}
        try:
            with TemporaryFile() as encoded:
                for number, selected in rows.items():
                    for row, content in _encoded_images(self.files[number], selected):
                        stored[number, row] = encoded.tell(), encoded.write(content)
                for number, row in keys:
                    start, length = stored[number, row]
                    encoded.seek(start)
                    yield BytesIO(encoded.read(length)), f"row {row} of {self.files[number]}"
        except OSError as error:
            raise UsageError(
                f"expected room for the encoded images in the folder of temporary files, got {error}: set TMPDIR to a "
                "larger one"
            ) from error


@contextmanager
def _open_parquet(file: Path) -> Iterator[ParquetFile]:
    """Open a file; raises UsageError if pyarrow is missing or cannot read it."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UsageError(
            f"expected pyarrow, which reads the parquet file {file}, but it is not installed: type "
            "`pip install metafew[hub]`"
        ) from error
    with explain_damage(file, "a parquet file", ArrowException, OSError, ValueError), ParquetFile(file) as parquet:
        yield parquet


def _encoded_images(file: Path, selected: set[int]) -> Iterator[tuple[int, bytes]]:
    """Yield the selected rows of a file with the bytes of their images, which are empty for null."""
    with _open_parquet(file) as parquet:
        column = _image_column(parquet.schema_arrow, file)
        sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        for group, start in enumerate(accumulate(sizes[:-1], initial=0)):
            if here := sorted(selected.intersection(range(start, start + sizes[group]))):
                images = parquet.read_row_group(group, [column]).column(0)
                for row in here:
                    value = images[row - start].as_py()
                    yield row, (value["bytes"] if isinstance(value, dict) else value) or b""


def _image_column(schema: Schema, file: Path) -> str:
    """Return the column of encoded images, ``NAME.bytes`` within a struct."""
    from pyarrow import types

    found = {}
    for field in schema:
        column, kind = field.name, field.type
        if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            column, kind = f"{column}.bytes", kind.field("bytes").type
        if types.is_binary(kind) or types.is_large_binary(kind):
            found[field.name] = column
    return found[_choose_column("images (encoded, as bytes)", list(found), IMAGES, None, schema, file)]


def _label_column(schema: Schema, label: str | None, file: Path) -> str:
    """Return the column of labels, of any type that may hold classes."""
    from pyarrow import types

    texts = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    kinds = (types.is_integer, types.is_boolean, types.is_floating, *texts)
    images, found = _image_column(schema, file).partition(".")[0], []
    for field in schema:
        kind = field.type.value_type if types.is_dictionary(field.type) else field.type
        if field.name != images and any(fits(kind) for fits in kinds):
            found.append(field.name)
    return _choose_column("labels (integers or strings)", found, LABELS, label, schema, file)


def _choose_column(
    what: str, found: Sequence[str], usual: Sequence[str], override: str | None, schema: Schema, file: Path
) -> str:
    """Return ``override`` if given, else the first column with a usual name, else the only one found.

    A column with a usual name and of another type is not passed over for the only one found.
    """
    only = found if len(found) == 1 and not {*usual} & {*schema.names} else ()
    candidates = [override] if override is not None else [*usual, *only]
    chosen = next((name for name in candidates if name in found), None)
    if chosen is None:
        expected = f"column '{override}'" if override is not None else "a column"
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        several = usual is LABELS and found
        advice = (
            f"type {' or '.join(to_paste('dataset.label', name) for name in found)}"
            if several
            else f"call that column {usual[0]}"
        )
        raise UsageError(f"expected {expected} of {what} in {file}, got the columns {columns}: {advice}")
    return chosen


def _class_names(schema: Schema, column: str, values: Sequence[Label | None], file: Path) -> dict[Label, str]:
    """Return the class name of each label: from metadata of the ``datasets`` library, or else the label itself."""
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = described.get("info", {}).get("features", {}).get(column, {}).get("names")
    if names:
        return dict(enumerate(map(class_name, names)))
    given = [value for value in values if value is not None]
    labels = class_labels(given, f"column {column} of {file}").tolist()
    found = dict(zip(given, labels, strict=True))
    return {value: class_name(label) for value, label in sorted(found.items(), key=itemgetter(1))}
