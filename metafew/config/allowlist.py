"""Which code a checkpoint may call: its configuration names classes, and a file from elsewhere could name any."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from os import PathLike
from typing import Any

from omegaconf import DictConfig, OmegaConf

from metafew.errors import UsageError
from metafew.io import CONF

CALLS = ("_target_", "_args_", "target")  # of Hydra, and of backbone=module, which could also stand in _args_


def called(cfg: Any) -> Iterator[str]:
    """Yield the dotted paths that a configuration wants to be called, in any place.

    >>> list(called(OmegaConf.create({"head": {"_target_": "a.B"}, "views": [{"_target_": "${head._target_}"}]})))
    ['a.B', 'a.B']
    """
    if OmegaConf.is_config(cfg):
        cfg = OmegaConf.to_container(cfg, resolve=True)
    if isinstance(cfg, dict):
        yield from (str(cfg[key]) for key in CALLS if cfg.get(key) is not None)
    for part in cfg.values() if isinstance(cfg, dict) else cfg if isinstance(cfg, list) else ():
        yield from called(part)


@cache
def own() -> frozenset[str]:
    """Return what the files of the configuration call."""
    # A path that only begins with metafew would not do: metafew.experiments.cells.subprocess.run is one.
    files = (OmegaConf.to_container(OmegaConf.load(file)) for file in CONF.glob("**/*.yaml"))
    return frozenset(name for file in files for name in called(file))


def check(cfg: DictConfig, path: str | PathLike, trusted: Iterable[str], advice: str) -> None:
    """Raise a sentence if ``cfg``, which comes from the checkpoint ``path``, calls more than it may.

    Args:
        cfg: what is going to be instantiated.
        path: the checkpoint.
        trusted: dotted paths that the user names, besides those of metafew's own configuration.
        advice: how the user names them.
    """
    if alien := set(called(cfg)) - own() - set(trusted):
        raise UsageError(
            f"a checkpoint may call what metafew's own configuration does, and {path} wants to call "
            f"{', '.join(sorted(alien))}, which may do anything: {advice}, if you trust it"
        )
