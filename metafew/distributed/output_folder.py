"""Claim the output folder of a run or a sweep before anything is written to it. Imports no torch."""

from __future__ import annotations

import copy
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from metafew.errors import UsageError

CHECKPOINTS = re.compile(r"checkpoints(-\d+)?")
"""Folders of checkpoints; with a number, those that a later training in the same folder has set aside."""


def claim(key: str, folder: Path, by_clock: bool) -> Path:
    """Create an output folder, and return its path.

    Runs that start in the same second have the same default name: the first to create the folder keeps it, and the
    others append ``-1``, ``-2`` and so on. A folder named by the user may exist, as ``ckpt=last`` requires.

    Args:
        key: the option that names the folder, ``hydra.run.dir`` or ``hydra.sweep.dir``.
        folder: its value.
        by_clock: whether the value contains the time, as returned by :func:`named_by_clock`.

    Raises:
        UsageError: if the folder cannot be created, or nothing can be written to it.
    """
    try:
        if by_clock:
            folder = create_first_free(folder)
        else:
            folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError("nothing can be written to it")
    except OSError as error:
        raise UsageError(
            f"expected {key} to be a folder that can be created and written to, got {folder} "
            f"({error.strerror or error}): type {key}=DIR"
        ) from error
    return folder


def named_by_clock(config: DictConfig, key: str) -> bool:
    """Return whether the value of ``key`` uses Hydra's resolver ``now``, directly or through other options."""
    trial = copy.deepcopy(config)
    OmegaConf.clear_cache(trial)
    OmegaConf.select(trial, key)
    return "now" in OmegaConf.get_cache(trial)


def require_named(key: str, by_clock: bool, ckpt: str | None) -> None:
    """Check that a run or sweep with ``ckpt=last`` names the folder to resume in, which must not contain the time.

    Args:
        key: the option that names the folder, ``hydra.run.dir`` or ``hydra.sweep.dir``.
        by_clock: whether its value comes from the clock.
        ckpt: the value of ``ckpt``.

    Raises:
        UsageError: if it has none.
    """
    if ckpt == "last" and by_clock:
        raise UsageError(f"expected {key}, the folder in which ckpt=last resumes a training, got none: type {key}=DIR")


def create_first_free(folder: Path) -> Path:
    """Create the first of the :func:`numbered` names that does not exist. Each name goes to a single process."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for name in numbered(folder):
        try:
            name.mkdir()
        except FileExistsError:
            continue
        return name
    raise AssertionError("the names do not end")


def numbered(path: Path) -> Iterator[Path]:
    """Yield ``path``, then ``path`` with ``-1``, ``-2`` and so on appended.

    >>> from itertools import islice
    >>> [path.name for path in islice(numbered(Path("outputs/12-30-59")), 3)]
    ['12-30-59', '12-30-59-1', '12-30-59-2']
    """
    yield path
    for number in itertools.count(1):
        yield path.with_name(f"{path.name}-{number}")
