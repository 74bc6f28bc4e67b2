"""Restrict the code that a checkpoint may call, as its configuration could name any code."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from os import PathLike
from typing import Any

from omegaconf import OmegaConf

from metafew.config.groups import CONF
from metafew.errors import UsageError

CALLS = ("_target_", "_args_", "target")
"""Keys that name code: two keys of Hydra, and that of ``backbone=module``, which ``_args_`` could also pass."""


def called_paths(config: Any, key: str = "") -> dict[str, str]:
    """Return the dotted paths that a configuration would call, at any depth, by their keys.

    >>> config = OmegaConf.create({"head": {"_target_": "a.B"}, "views": [{"_target_": "${head._target_}"}]})
    >>> called_paths(config)
    {'head._target_': 'a.B', 'views.0._target_': 'a.B'}
    """
    if OmegaConf.is_config(config):
        config = OmegaConf.to_container(config, resolve=True)
    if not isinstance(config, dict | list):
        return {}
    found = {}
    for name, part in config.items() if isinstance(config, dict) else enumerate(config):
        if name in CALLS and part is not None:
            found[f"{key}{name!s}"] = str(part)
        found |= called_paths(part, f"{key}{name!s}.")
    return found


@cache
def allowed_paths() -> frozenset[str]:
    """Return the dotted paths that metafew's own YAML files call."""
    # A prefix would not suffice: metafew.experiments.cells.subprocess.run starts with metafew, too.
    files = (OmegaConf.to_container(OmegaConf.load(file)) for file in CONF.glob("**/*.yaml"))
    return frozenset(name for file in files for name in called_paths(file).values())


def check_called_paths(
    config: Any, path: str | PathLike, trusted: Iterable[str], advise: Callable[[dict[str, str]], str]
) -> None:
    """Check that a configuration from a checkpoint only calls allowed code.

    Args:
        config: the configuration to be instantiated.
        path: the checkpoint.
        trusted: dotted paths that the user allows in addition to those of metafew's own YAML files.
        advise: takes further dotted paths by their keys, and returns advice on how to allow them.

    Raises:
        UsageError: if ``config`` calls other code.
    """
    known = allowed_paths() | set(trusted)
    if unknown := {key: name for key, name in called_paths(config).items() if name not in known}:
        raise UsageError(
            f"expected a checkpoint that calls only what metafew's own configuration does, and {path} would call "
            f"{', '.join(sorted(set(unknown.values())))}, which could run any code: {advise(unknown)}, if you trust it"
        )
