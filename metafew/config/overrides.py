"""Overrides on the command line, and merging them with those of an earlier run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from omegaconf import OmegaConf


def verbatim(overrides: Sequence[str]) -> list[str]:
    """Return a list of overrides with unresolved interpolations; iterating over a ListConfig resolves them.

    >>> verbatim(OmegaConf.create(["dataset.root=${data_dir}/birds"]))
    ['dataset.root=${data_dir}/birds']
    """
    words: Any = OmegaConf.to_container(overrides, resolve=False)
    return words


def key(override: str) -> str:
    """Return the group or option that an override sets.

    >>> key("++head.c=1"), key("evaluate@tested=[svm]"), key("~augment.views.colour")
    ('head.c', 'evaluate', 'augment.views.colour')
    """
    return override.lstrip("+~").split("=")[0].split("@")[0]


def merge(saved: Iterable[str], new: Iterable[str], groups: Iterable[str]) -> list[str]:
    """Return ``saved`` overrides with ``new`` ones applied on top.

    A new value replaces the saved one, and a new choice of a group also drops the saved options below it.

    >>> merge(["norm=batch", "norm.eps=0.1", "seed=3", "head.c=1"], ["norm=layer", "ckpt=a.ckpt"], ["norm", "head"])
    ['seed=3', 'head.c=1', 'norm=layer', 'ckpt=a.ckpt']
    >>> merge(["+trainer.deterministic=true", "stages=[fit]"], ["ckpt=a.ckpt"], [])
    ['++trainer.deterministic=true', 'ckpt=a.ckpt']
    """
    new = list(new)
    replaced = {key(override) for override in new}
    dropped = tuple(f"{group}." for group in replaced & set(groups))
    # A saved + adds a key. If the key has been added since, only ++ can set it.
    saved = [f"+{o}" if o.startswith("+") and not o.startswith("++") else o for o in saved]
    kept = [o for o in saved if key(o) not in replaced | {"ckpt", "stages"} and not key(o).startswith(dropped)]
    return kept + new
