"""JSON files, atomic writes, and the encoding of the terminal. Imports no torch."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO, Any

from metafew.errors import UsageError


def read_json(path: Path) -> dict:
    """Return the content of a JSON file, or an empty dictionary if there is no such file.

    Raises:
        UsageError: if the file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UsageError(
            f"expected {path} to be JSON, as metafew wrote it, got damaged text ({error}): restore or delete it"
        ) from error


def write_json(path: Path, content: dict) -> None:
    """Write ``content`` atomically, and create the folder if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_error(out: Path, content: dict) -> None:
    """Write an error as the results of the run in ``out``; earlier results are set aside."""
    set_results_aside(out)
    write_json(out / "results.json", content)


def set_results_aside(out: Path) -> None:
    """Rename results of an earlier run in ``out``, if any, to results-1.json, or the first free number."""
    if has_results(out):
        names = (out / f"results-{number}.json" for number in count(1))
        (out / "results.json").rename(next(name for name in names if not name.exists()))


def has_results(out: Path) -> bool:
    """Return whether results.json has results rather than an error; a damaged one counts, too."""
    try:
        found = read_json(out / "results.json")
    except UsageError:
        return True
    return bool(found) and "error" not in found


def has_results_of(out: Path, config: dict) -> bool:
    """Return whether results.json has the results of a run with this configuration."""
    try:
        return read_json(out / "results.json").get("config") == config
    except UsageError:
        return False


def is_own(ckpt: str | None, out: Path) -> bool:
    """Return whether ``ckpt`` is a checkpoint of the run in ``out``, which then only means that the run was resumed."""
    if ckpt is None:
        return False
    path, checkpoints = Path(ckpt).resolve(), (out / "checkpoints").resolve()  # which may be a link
    return path.is_relative_to(out.resolve()) or path.is_relative_to(checkpoints)


@contextmanager
def atomic_write(path: Path, mode: str = "w", **options: Any) -> Iterator[IO]:
    """Open a file that replaces ``path`` once it is complete; before that, and after an error, ``path`` is unchanged.

    Args:
        path: the file to create or replace.
        mode: as for :func:`open`.
        options: as for :func:`open`.
    """
    unfinished = path.with_name(f"{path.name}.tmp")
    if "b" not in mode:
        options = {"encoding": "utf-8", "errors": "surrogateescape"} | options  # for names of files in other encodings
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


def print_any_character() -> None:
    """Print characters outside the encoding of the terminal as question marks, and write log files in UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    for handler in logging.root.handlers:  # Hydra opens train.log in the encoding of the locale
        if isinstance(handler, logging.FileHandler) and isinstance(handler.stream, io.TextIOWrapper):
            handler.stream.reconfigure(encoding="utf-8", errors="replace")
