"""Update checkpoints and results of earlier versions: dotted paths that have moved, and options added since."""

from __future__ import annotations

import re
from typing import Any

from metafew.config.overrides import key

MOVED = {
    "metafew.loggers.TensorBoard": "metafew.loggers.tensorboard.TensorBoard",
    "metafew.loggers.Wandb": "metafew.loggers.wandb.Wandb",
    "metafew.regularizers.": "metafew.objectives.regularizers.",
    "metafew.schedules.": "metafew.training.schedules.",
}
"""Prefixes of dotted paths: old and new."""
OLD = re.compile(rf"(?:(?<==)|^)({'|'.join(map(re.escape, MOVED))})")
"""A path by itself, or as the value of an override."""
ADDED: dict[str, dict[str, Any]] = {
    "dataset": {"duplicates": "warn", "white": None, "background": None, "layout": "auto", "columns": None},
    "backbone": {"norms": "convert", "freeze": None, "mean": None, "std": None, "output": None, "readout": "flatten"},
    "head": {"output_std": None, "memory": "auto"},
    "val": {"at_start": True},  # does not affect results
}
"""Options added since earlier versions, by group, with values that reproduce the results of these versions."""


def add_options(saved: dict, current: dict) -> dict:
    """Add missing options of :data:`ADDED` to the options of a checkpoint or of results.

    Args:
        saved: options by group.
        current: the options of this run, which need not include those of :data:`ADDED`.

    >>> add_options({"dataset": {"root": "a"}}, {"dataset": {"root": "a", "duplicates": "drop"}})
    {'dataset': {'duplicates': 'warn', 'root': 'a'}}
    """
    added = {
        group: {option: value for option, value in options.items() if option in current.get(group, {})}
        for group, options in ADDED.items()
        if group in saved
    }
    return saved | {group: options | saved[group] for group, options in added.items()}


def choose_own_norms(saved: dict) -> dict:
    """Choose ``norm=own`` in the record of a checkpoint of ``backbone=module`` that ignored its ``norm``.

    >>> model = {"backbone": {"_target_": "metafew.backbones.module.Wrapped"}, "norm": {"eps": 0.1}}
    >>> new = choose_own_norms({"model": model, "choices": {"norm": "layer"}, "overrides": ["norm=layer", "seed=1"]})
    >>> new["model"]["norm"], new["choices"], new["overrides"]
    ({'_target_': 'metafew.norms.own.OwnNorms'}, {'norm': 'own'}, ['seed=1'])
    """
    backbone = saved["model"]["backbone"]
    if backbone["_target_"] != "metafew.backbones.module.Wrapped" or "norms" in backbone:
        return saved
    own = {"norm": {"_target_": "metafew.norms.own.OwnNorms"}}
    parts = {part: saved[part] | own for part in ("model", "config", "training") if part in saved}
    overrides = [override for override in saved["overrides"] if key(override).partition(".")[0] != "norm"]
    return saved | parts | {"choices": saved["choices"] | {"norm": "own"}, "overrides": overrides}


def update_paths(config: Any) -> Any:
    """Return plain values with all dotted paths updated, also in the values of overrides.

    >>> update_paths({"schedule": {"_target_": "metafew.schedules.piecewise", "since": [0]}})
    {'schedule': {'_target_': 'metafew.training.schedules.piecewise', 'since': [0]}}
    >>> update_paths(["schedule._target_=metafew.schedules.piecewise", "seed=1"])
    ['schedule._target_=metafew.training.schedules.piecewise', 'seed=1']
    """
    if isinstance(config, dict):
        return {key: update_paths(value) for key, value in config.items()}
    if isinstance(config, list):
        return [update_paths(item) for item in config]
    return OLD.sub(lambda path: MOVED[path[1]], config) if isinstance(config, str) else config
