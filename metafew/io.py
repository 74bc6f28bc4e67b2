"""The configuration's folder, and files that are there whole or not at all. Imports no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

INSTALLED = Path(__file__).parent / "conf"
CONF = INSTALLED if INSTALLED.is_dir() else Path(__file__).parents[1] / "conf"


def read_json(path: Path) -> dict:
    """Return the content of a JSON file, nothing where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def write_json(path: Path, content: dict) -> None:
    """Write ``content`` whole or not at all, in a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=2, allow_nan=False) + "\n")


@contextmanager
def atomic_write(path: Path, mode: str = "w", **options: Any) -> Iterator[IO]:
    """Open a file that takes the place of ``path`` when all is written; whatever happens before, ``path`` stays.

    Args:
        path: the file to replace, or to make.
        mode: as for :func:`open`.
        options: likewise.
    """
    unfinished = path.with_name(f"{path.name}.tmp")
    if "b" not in mode:
        options.setdefault("encoding", "utf-8")
    try:
        with unfinished.open(mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise
