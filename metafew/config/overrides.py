"""Overrides of the command line, and how they merge with overrides of an earlier run."""

from __future__ import annotations

from collections.abc import Iterable

from omegaconf import ListConfig, OmegaConf


def verbatim(overrides: ListConfig) -> list[str]:
    """Return overrides as they were typed: iteration would replace ``${data_dir}`` in one of them by its value.

    >>> verbatim(OmegaConf.create(["dataset.root=${data_dir}/birds"]))
    ['dataset.root=${data_dir}/birds']
    """
    return OmegaConf.to_container(overrides, resolve=False)


def merge(saved: Iterable[str], typed: Iterable[str], groups: Iterable[str]) -> list[str]:
    """Return ``saved`` overrides with ``typed`` ones applied on top.

    A typed value replaces the saved one, and a typed group also drops the saved options below it.

    >>> merge(["norm=batch", "norm.eps=0.1", "seed=3", "head.c=1"], ["norm=layer", "ckpt=a.ckpt"], ["norm", "head"])
    ['seed=3', 'head.c=1', 'norm=layer', 'ckpt=a.ckpt']
    >>> merge(["+trainer.deterministic=true", "stages=[fit]"], ["ckpt=a.ckpt"], [])
    ['++trainer.deterministic=true', 'ckpt=a.ckpt']
    """

    def key(override: str) -> str:
        return override.lstrip("+~").split("=")[0].split("@")[0]

    typed = list(typed)
    replaced = {key(override) for override in typed}
    dropped = tuple(f"{group}." for group in replaced & set(groups))
    # A saved + added a key. Where that key exists in the meantime, only ++ can set it.
    saved = [f"+{o}" if o.startswith("+") and not o.startswith("++") else o for o in saved]
    kept = [o for o in saved if key(o) not in replaced | {"ckpt", "stages"} and not key(o).startswith(dropped)]
    return kept + typed
