"""The part of a run's configuration that a checkpoint stores, and its changes in later compositions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

MACHINE = ("hydra", "defaults", "logger", "experiment", "ckpt", "stages", "data_dir", "cache_dir", "cuda_graph")
"""Parts that belong to one command on one machine; ``defaults`` would make Hydra load further files."""
OF_ONE_COMMAND = ("callbacks", "logger", "profiler", "max_time")
"""Trainer options that do not affect the model, and that could name any code."""
TRAINING = (
    "dataset", "augment", "backbone", "norm", "regularizer",
    "objective", "optimizer", "schedule", "head", "train", "seed",
)  # fmt: skip
"""Parts of the configuration that affect training."""
STEP = ("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "precision")
"""Trainer options that affect a training step."""
MISSING = object()


class Composition(NamedTuple):
    """A composed configuration.

    Attributes:
        config: its plain values, with unresolved interpolations.
        choices: the option chosen for each group.
    """

    config: dict[str, Any]
    choices: dict[str, Any]

    def chosen(self, group: str) -> Any:
        """Return the option chosen for a group; for ``evaluate``, a list of options."""
        return list(self.config.get("evaluate") or {}) if group == "evaluate" else self.choices.get(group)


def carried(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a configuration that a checkpoint stores: everything except :data:`MACHINE`.

    >>> carried({"seed": 1, "ckpt": "a.ckpt", "data_dir": "data"})
    {'seed': 1}
    """
    kept = {key: value for key, value in config.items() if key not in MACHINE}
    if isinstance(trainer := kept.get("trainer"), dict):
        kept["trainer"] = {key: value for key, value in trainer.items() if key not in OF_ONE_COMMAND}
    return kept


def training_options(config: dict) -> dict:
    """Return the parts of a configuration that affect training, with unresolved interpolations."""
    training = {key: config[key] for key in TRAINING if key in config}
    return training | {"trainer": {key: value for key, value in config["trainer"].items() if key in STEP}}


def choose(saved: Composition, old: Composition, new: Composition, groups: Iterable[str]) -> Composition:
    """Switch groups of a saved composition to new choices, and return the result.

    Switched groups start from their defaults. Elsewhere, values still at the defaults of the old choices are replaced.

    Args:
        saved: the composition of a checkpoint.
        old: the composition of the old choices alone.
        new: the composition of the new choices alone.
        groups: the groups to switch.
    """
    brought = (group for group in new.choices if saved.chosen(group) == old.chosen(group) != new.chosen(group))
    changed = {group for group in groups if saved.chosen(group) != new.chosen(group)} | set(brought)
    config = rebase(saved.config, old.config, new.config)
    config = {key: value for key, value in config.items() if key not in changed}
    config |= {group: new.config[group] for group in changed if group in new.config}
    return Composition(config, saved.choices | {group: new.choices.get(group) for group in changed})


def rebase(saved: dict, old: dict, new: dict) -> dict:
    """Apply the changes from ``old`` to ``new`` to ``saved``; values of ``saved`` that differ from ``old`` are kept.

    >>> rebase({"way": 5, "tasks": 1, "size": 64}, {"way": 20, "tasks": 1, "size": 64}, {"way": 2, "tasks": 4})
    {'way': 5, 'tasks': 4}
    """
    result = {key: value for key, value in saved.items() if key not in old or key in new}
    for key, value in new.items():
        before, own = old.get(key, MISSING), saved.get(key, MISSING)
        if isinstance(value, dict) and isinstance(before, dict) and isinstance(own, dict):
            result[key] = rebase(own, before, value)
        elif own == before != value:
            result[key] = value
    return result


def lay(config: dict, over: dict) -> dict:
    """Return ``over``, completed by values of ``config`` at any depth.

    >>> lay({"test": {"way": 5, "shot": 1}, "ckpt": None}, {"test": {"way": 20}})
    {'test': {'way': 20, 'shot': 1}, 'ckpt': None}
    """
    both = {key: lay(config[key], value) for key, value in over.items() if is_pair(config.get(key), value)}
    return config | over | both


def is_pair(one: Any, other: Any) -> bool:
    """Return whether both values are dictionaries."""
    return isinstance(one, dict) and isinstance(other, dict)


def differences(config: dict, base: dict, ignored: Iterable[str], path: str = "") -> dict:
    """Return the values of ``config`` that differ from those of ``base``.

    Args:
        config: a configuration.
        base: another one.
        ignored: keys, such as ``head.c``, to ignore together with all keys below them.
        path: key of both in the configuration, with a trailing dot.

    >>> differences({"test": {"way": 20, "shot": 1}, "seed": 3}, {"test": {"way": 5, "shot": 1}, "seed": 0}, ["seed"])
    {'test': {'way': 20}}
    """
    ignored, found = set(ignored), {}
    for key, value in config.items():
        if f"{path}{key}" in ignored or value == base.get(key, MISSING):
            continue
        deeper = is_pair(value, base.get(key))
        found[key] = differences(value, base[key], ignored, f"{path}{key}.") if deeper else value
    return found
