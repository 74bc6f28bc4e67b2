"""Restrict the code that a checkpoint may call: its configuration names classes, and could name any code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from os import PathLike
from typing import Any

from omegaconf import OmegaConf

from metafew.config.groups import CONF
from metafew.errors import UsageError

CALLS = ("_target_", "_args_", "target")
"""Keys that name code: two of Hydra, and that of ``backbone=module``, which ``_args_`` could also pass."""


def called_paths(config: Any) -> Iterator[str]:
    """Yield the dotted paths that a configuration would call, at any depth.

    >>> config = OmegaConf.create({"head": {"_target_": "a.B"}, "views": [{"_target_": "${head._target_}"}]})
    >>> list(called_paths(config))
    ['a.B', 'a.B']
    """
    if OmegaConf.is_config(config):
        config = OmegaConf.to_container(config, resolve=True)
    if isinstance(config, dict):
        yield from (str(config[key]) for key in CALLS if config.get(key) is not None)
    for part in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
        yield from called_paths(part)


@cache
def allowed_paths() -> frozenset[str]:
    """Return the dotted paths that metafew's own YAML files call."""
    # A prefix would not do: metafew.experiments.cells.subprocess.run starts with metafew, too.
    files = (OmegaConf.to_container(OmegaConf.load(file)) for file in CONF.glob("**/*.yaml"))
    return frozenset(name for file in files for name in called_paths(file))


def check_called_paths(config: Any, path: str | PathLike, trusted: Iterable[str], advice: str) -> None:
    """Check that a configuration from a checkpoint calls only what it may.

    Args:
        config: the configuration to be instantiated.
        path: the checkpoint.
        trusted: dotted paths that the user allows in addition to those of metafew's own YAML files.
        advice: how the user allows more.

    Raises:
        UsageError: if ``config`` calls other code.
    """
    if unknown := set(called_paths(config)) - allowed_paths() - set(trusted):
        raise UsageError(
            f"expected a checkpoint that calls only what metafew's own configuration does, and {path} would call "
            f"{', '.join(sorted(unknown))}, which could run any code: {advice}, if you trust it"
        )
