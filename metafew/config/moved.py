"""Update checkpoints and results of earlier versions: dotted paths that have moved, and options added since."""

from __future__ import annotations

import re
from typing import Any

MOVED = {
    "metafew.loggers.TensorBoard": "metafew.loggers.tensorboard.TensorBoard",
    "metafew.loggers.Wandb": "metafew.loggers.wandb.Wandb",
    "metafew.regularizers.": "metafew.objectives.regularizers.",
    "metafew.schedules.": "metafew.training.schedules.",
}
"""Prefixes of dotted paths: old and new."""
OLD = re.compile(rf"(?:(?<==)|^)({'|'.join(map(re.escape, MOVED))})")
"""A path by itself, or as the value of an override."""
ADDED = {
    "dataset": {"duplicates": "warn", "white": None, "background": None, "layout": "auto", "columns": None},
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
