"""Parquet files as Hugging Face writes them: a column of encoded images and a column of labels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from PIL import Image

from metafew.data.formats.images import decode
from metafew.errors import UsageError

if TYPE_CHECKING:
    from pyarrow import DataType, Schema
    from pyarrow.parquet import ParquetFile

IMAGES = ("image", "img")
LABELS = ("label", "labels", "fine_label", "class")


class Parquet:
    """Images of classes in parquet files; keys are the number of a file and a row.

    Images are a column of encoded bytes, alone or beside a path in a struct: `image` or `img`, else the only such
    column. Classes are named by what `datasets` wrote of the label column, or else by the labels themselves. Rows
    without a label (null, or -1 among named classes) are left out.

    Args:
        files: The files.
        label: The column of labels, integers or strings. None takes `label`, `labels`, `fine_label` or `class`, else
            the only such column.

    Raises:
        UsageError: pyarrow is not installed, a file is damaged, or its columns are not these.
    """

    def __init__(self, files: Sequence[Path], label: str | None = None):
        self.files = tuple(files)
        classes: dict[str, list[tuple[int, int]]] = {}
        for number, file in enumerate(self.files):
            with reading(file) as parquet:
                column = label_column(parquet.schema_arrow, label, file)
                values = parquet.read([column]).column(0).to_pylist()
                names = class_names(parquet.schema_arrow, column, values)
            for name in names.values():
                classes.setdefault(name, [])
            for row, value in enumerate(values):
                if value in names:
                    classes[names[value]].append((number, row))
        self.classes = {name: tuple(keys) for name, keys in classes.items() if keys}

    def open(self, keys: Sequence[tuple[int, int]]) -> Iterator[Image.Image]:
        """Read images in the order of `keys`.

        The rows of a class lie anywhere: each row group is read once, alone, and the bytes of its images wait in a
        temporary file for their turn.

        Raises:
            UsageError: A file or an image is damaged.
        """
        rows: dict[int, set[int]] = {}
        for number, row in keys:
            rows.setdefault(number, set()).add(row)
        places = {}
        with TemporaryFile() as encoded:
            for number, wanted in rows.items():
                for row, content in contents(self.files[number], wanted):
                    places[number, row] = encoded.tell(), encoded.write(content)
            for number, row in keys:
                start, length = places[number, row]
                encoded.seek(start)
                yield decode(BytesIO(encoded.read(length)), f"row {row} of {self.files[number]}")


@contextmanager
def reading(file: Path) -> Iterator[ParquetFile]:
    """Open a file; what pyarrow objects to becomes a sentence."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UsageError(
            f"{file} is a parquet file, which pyarrow reads, and pyarrow is not installed: type "
            "`pip install metafew[hub]`"
        ) from error
    try:
        with ParquetFile(file) as parquet:
            yield parquet
    except (ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UsageError(
            f"{file} should be a parquet file and cannot be read as one ({reason}): remove it, or replace it with a "
            "good copy"
        ) from error


def contents(file: Path, wanted: set[int]) -> Iterator[tuple[int, bytes]]:
    """Return the rows `wanted` of a file with the bytes of their images, empty where there are none."""
    with reading(file) as parquet:
        column = image_column(parquet.schema_arrow, file)
        sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        for group, start in enumerate(accumulate(sizes[:-1], initial=0)):
            if here := sorted(wanted.intersection(range(start, start + sizes[group]))):
                images = parquet.read_row_group(group, [column]).column(0)
                for row in here:
                    value = images[row - start].as_py()
                    yield row, (value["bytes"] if isinstance(value, dict) else value) or b""


def image_column(schema: Schema, file: Path) -> str:
    """Return the column of encoded images, `NAME.bytes` within a struct."""
    from pyarrow import types

    def binary(kind: DataType) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind)

    fields = {field.name: field.type for field in schema}
    plain = {name: name for name, kind in fields.items() if binary(kind)}
    structs = {name: kind for name, kind in fields.items() if types.is_struct(kind)}
    nested = {
        name: f"{name}.bytes"
        for name, kind in structs.items()
        if kind.get_field_index("bytes") >= 0 and binary(kind.field("bytes").type)
    }
    found = plain | nested
    return found[choose("images (encoded, as bytes)", found, IMAGES, None, schema, file)]


def label_column(schema: Schema, label: str | None, file: Path) -> str:
    """Return the column of labels."""
    from pyarrow import types

    kinds = (types.is_integer, types.is_string, types.is_large_string)
    found = [field.name for field in schema if any(kind(field.type) for kind in kinds)]
    return choose("labels (integers or strings)", found, LABELS, label, schema, file)


def choose(what: str, found: Sequence[str], usual: Sequence[str], typed: str | None, schema: Schema, file: Path) -> str:
    """Return the column that was typed, or else has a usual name, or else is the only one found."""
    candidates = [typed] if typed is not None else [*usual, *(found if len(found) == 1 else ())]
    chosen = next((name for name in candidates if name in found), None)
    if chosen is None:
        wanted = f"column '{typed}'" if typed is not None else "a column"
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        several = usual is LABELS and found
        advice = f"type dataset.label={' or '.join(found)}" if several else f"call that column {usual[0]}"
        raise UsageError(f"{wanted} of {what} is wanted of {file}, whose columns are {columns}: {advice}")
    return chosen


def class_names(schema: Schema, column: str, values: Sequence[int | str | None]) -> dict[int | str, str]:
    """Return the class name of each label."""
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = described.get("info", {}).get("features", {}).get(column, {}).get("names")
    if names:
        return dict(enumerate(names))
    return {value: str(value) for value in sorted({value for value in values if value is not None})}
