"""Read columns of CSV files by name."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from metafew.config.quoting import to_paste
from metafew.data.formats.damage import explain_damage
from metafew.data.formats.scan import SUFFIXES
from metafew.errors import UsageError

SEPARATORS = ",;\t"
WORDS = {
    **{"train": "train", "training": "train", "test": "test", "testing": "test"},
    **{"val": "val", "valid": "val", "validation": "val"},
}
"""The split for each word."""

log = logging.getLogger(__name__)
USUAL = {
    "file": ("file", "filename", "filepath", "path", "image", "imagename", "imagefile", "imagepath", "img", "imgpath"),
    "class": ("class", "classname", "classid", "label", "labelname", "category", "species", "target"),
    "split": ("split", "splitname", "set", "subset", "partition"),
}
"""Recognized column names, in lower case and without spaces and punctuation."""


class Columns(NamedTuple):
    """Columns of a CSV file.

    Attributes:
        rows: the line number and the values of each row.
        unused: the names of the other columns.
    """

    rows: list[tuple[int, tuple[str, ...]]]
    unused: list[str]


def check_columns(columns: Mapping[str, str] | None) -> dict[str, str]:
    """Return the names of columns; raises UsageError for keys that are not in :data:`USUAL`."""
    given = columns if columns is not None else {}
    if not isinstance(given, Mapping) or not set(given) <= set(USUAL):
        raise UsageError(
            f"expected dataset.columns to name the columns {', '.join(USUAL)}, got {columns}: type "
            "dataset.columns={file:NAME,class:NAME}"
        )
    return {role: str(name) for role, name in given.items()}


def check_columns_are_read(columns: Mapping[str, str], files: Sequence[str | int | None]) -> None:
    """Raise UsageError if columns are named, and none of the files of a dataset is a CSV file."""
    if columns and all(file is None or str(file).lower().endswith(".json") for file in files):
        raise UsageError(
            f"expected a CSV file for the columns that dataset.columns names, got none for {columns}: type "
            "dataset.splits=FILE.csv, or dataset.columns=null"
        )


def read_columns(file: Path, roles: Sequence[str], named: Mapping[str, str]) -> Columns:
    """Read columns of a CSV file with a header, separated by commas, semicolons or tabs.

    Args:
        file: the file.
        roles: the columns to read, as keys of :data:`USUAL`.
        named: explicit names of columns, needed if no column or several columns have a usual name.

    Raises:
        UsageError: if the file cannot be read, has no rows, does not have exactly one column per role, or a row lacks a
            value.
    """
    with explain_damage(file, "CSV", OSError, ValueError, csv.Error, advice="correct the file"):
        text = file.read_bytes().decode("utf-8-sig")
        separator = max(SEPARATORS, key=lambda each: len(next((row for _, row in _rows(text, each) if any(row)), [])))
        table = [(line, row) for line, row in _rows(text, separator) if any(row)]
    header = table[0][1] if table else []
    places = _find_columns(file, header, roles, named)
    if len(table) < 2:
        raise UsageError(f"expected lines of {' and '.join(roles)} in {file}, got its header only: add them")
    rows = []
    for line, row in table[1:]:
        values = tuple(row[place] if place < len(row) else "" for place in places)
        if not all(values):
            raise UsageError(f"expected {' and '.join(roles)} in line {line} of {file}, got {row}: correct the line")
        rows.append((line, values))
    return Columns(rows, [name for place, name in enumerate(header) if name and place not in places])


def _rows(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the cells of each line."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    yield from ((reader.line_num, [cell.strip() for cell in row]) for row in reader)


def _find_columns(file: Path, header: Sequence[str], roles: Sequence[str], named: Mapping[str, str]) -> list[int]:
    """Return the column index of each role; raises UsageError unless there is exactly one column."""
    usual = {
        role: [place for place, name in enumerate(header) if re.sub(r"[\W_]", "", name.lower()) in USUAL[role]]
        for role in roles
    }
    typed = {role: [place for place, name in enumerate(header) if name == named.get(role)] for role in roles}
    found = {role: typed[role] or usual[role] for role in roles}
    if all(len(places) == 1 for places in found.values()):
        for role in roles:
            if role in named and not typed[role]:
                log.warning("%s has no column %s, so %s is read instead", file, named[role], header[found[role][0]])
        return [place for (place,) in found.values()]
    if any(cell.lower().endswith(SUFFIXES) or cell.lower() in WORDS for cell in header):
        raise UsageError(
            f"expected the first line of {file} to be a header, such as {','.join(roles)}, got {', '.join(header)}: "
            "add that line"
        )
    taken = {place for places in found.values() for place in places}
    free = iter([name for place, name in enumerate(header) if place not in taken])
    example = {role: header[places[0]] if places else next(free, "NAME") for role, places in found.items()}
    raise UsageError(
        f"expected one column each for {' and '.join(named.get(role, role) for role in roles)} in {file}, got the "
        f"columns {', '.join(header) or 'of an empty file'}: type {to_paste('dataset.columns', example)} with the "
        "right names"
    )
