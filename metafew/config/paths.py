"""Options that are paths: ``~`` is the home folder, and relative paths resolve against the launch directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from metafew.config.groups import options_of

PATHS = (
    "data_dir", "cache_dir", "ckpt", "cells", "backbone.weights",
    "dataset.root", "dataset.splits", "dataset.labels",
)  # fmt: skip
"""Options with a single path, or null."""
LISTS = ("dataset.sources", "dataset.test_sources")
"""Options with lists of paths and other words."""
OF_A_SOURCE = ("root", "splits", "labels")
"""Options with paths of a dataset in these lists."""
FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
"""Options of Hydra itself that are paths."""


def resolve_paths(cfg: DictConfig) -> DictConfig:
    """Expand ``~`` in the paths of a configuration; with ``hydra.job.chdir``, make them absolute.

    A YAML file may give the name of a folder as a number, such as 2024.

    Args:
        cfg: the configuration, which is changed.

    Returns:
        ``cfg``.
    """
    folder = typed_in() if HydraConfig.initialized() and HydraConfig.get().job.chdir else None
    for key in (*PATHS, *LISTS):
        value = OmegaConf.select(cfg, key)
        plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_list(value) else value
        number = key in PATHS and type(plain) is int
        resolved = resolved_path(str(plain) if number else plain, folder, listed=key in LISTS)
        if resolved != plain and (key, plain) != ("ckpt", "last"):
            OmegaConf.update(cfg, key, resolved)
    return cfg


def resolved_path(value: Any, folder: Path | None, listed: bool = False) -> Any:
    """Resolve one option that is a path, or a list of paths and other words, for :func:`resolve_paths`.

    Args:
        value: the option.
        folder: the folder against which relative paths are resolved; None leaves them relative.
        listed: whether only existing files and folders count as paths.
    """
    if isinstance(value, list):
        return [resolved_path(item, folder, listed) for item in value]
    if isinstance(value, dict):
        found = {key: resolved_path(item, folder) for key, item in value.items() if key in OF_A_SOURCE}
        if "dataset" in value:  # an option, or a folder
            found["dataset"] = resolved_path(value["dataset"], folder, listed=True)
        return value | found
    if not isinstance(value, str):
        return value
    path = os.path.expanduser(value)
    is_word = listed and (value in options_of("dataset") or (folder is not None and not (folder / path).exists()))
    return path if folder is None or is_word else str(folder / path)


def typed_in() -> Path:
    """Return the directory from which this run was launched, before ``hydra.job.chdir`` changes it."""
    hydra: Any = HydraConfig.get()
    return Path(OmegaConf.select(hydra, "runtime.cwd") or Path.cwd())  # missing in a composed configuration
