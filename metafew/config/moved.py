"""Update checkpoints and results of earlier versions: dotted paths that have moved, and options added since."""

from __future__ import annotations

import re
from collections.abc import Mapping
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
    "metafew.backbones.conv4.Conv4": {"bias": False},
    "metafew.data.sources.hub.Hub": {"invert": False},
    "metafew.backbones.resnet18.ResNet18": {"readout": "mean"},
    "metafew.heads.feat.FEAT": {"attention_dropout": 0.5},  # head.dropout, 0.5 by default, was that of both
    "head": {"output_std": None, "memory": "auto"},
    "val": {"at_start": True, "balance": "balanced", "dirichlet": 2.0},  # at_start does not affect results
    "test": {"balance": "balanced", "dirichlet": 2.0},
}
"""Options added since earlier versions, by group, with values that reproduce the results of these versions.

Options listed under the dotted path of a component take precedence over those of its group.
"""
TOP = {"cuda_graph": False}
"""Options added outside of groups."""
OWN_NORMS = {"norm": {"_target_": "metafew.norms.own.OwnNorms"}}


def update_record(saved: dict) -> dict:
    """Update the record of a run of an earlier version, in a checkpoint or in its results: paths, and ignored norms."""
    return choose_own_norms(update_paths(saved))


def add_options(saved: dict, current: dict) -> dict:
    """Add missing options of :data:`ADDED` to the options of a checkpoint or of results.

    Args:
        saved: options by group.
        current: the options of this run, which need not include those of :data:`ADDED`.

    >>> add_options({"dataset": {"root": "a"}}, {"dataset": {"root": "a", "duplicates": "drop"}})
    {'dataset': {'duplicates': 'warn', 'root': 'a'}}
    >>> add_options({"evaluate": {"maml": {"steps": 5}}}, {"evaluate": {"maml": {"steps": 1, "memory": 600}}})
    {'evaluate': {'maml': {'memory': 'auto', 'steps': 5}}}
    >>> resnet = {"_target_": "metafew.backbones.resnet18.ResNet18"}
    >>> add_options({"backbone": resnet}, {"backbone": resnet | {"readout": "map"}})["backbone"]["readout"]
    'mean'
    """
    completed = {group: completion(group, current.get(group)) | saved[group] for group in ADDED if group in saved}
    if heads := saved.get("evaluate"):
        now = current.get("evaluate") or {}
        completed["evaluate"] = {name: completion("head", now.get(name)) | head for name, head in heads.items()}
    return {option: value for option, value in TOP.items() if option in current} | saved | completed


def completion(group: str, current: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the added options of a group that are among the current ones, with the values of earlier versions."""
    current = current or {}
    added = ADDED[group] | ADDED.get(current.get("_target_", ""), {})
    return {option: value for option, value in added.items() if option in current}


def choose_own_norms(saved: dict) -> dict:
    """Choose ``norm=own`` in the record of a run with ``backbone=module`` that ignored its ``norm``.

    >>> model = {"backbone": {"_target_": "metafew.backbones.module.Wrapped"}, "norm": {"eps": 0.1}}
    >>> new = choose_own_norms({"model": model, "choices": {"norm": "layer"}, "overrides": ["norm=layer", "seed=1"]})
    >>> new["model"]["norm"], new["choices"], new["overrides"]
    ({'_target_': 'metafew.norms.own.OwnNorms'}, {'norm': 'own'}, ['seed=1'])
    """
    parts = {part: saved[part] | OWN_NORMS for part in ("model", "config", "training") if ignores_norm(saved.get(part))}
    if not parts:
        return saved
    if "choices" in saved:  # missing from results of earlier versions, as are overrides from all results
        parts["choices"] = saved["choices"] | {"norm": "own"}
    if "overrides" in saved:
        parts["overrides"] = [word for word in saved["overrides"] if key(word).partition(".")[0] != "norm"]
    return saved | parts


def ignores_norm(config: Any) -> bool:
    """Return whether a configuration is that of an earlier version of ``backbone=module``, which kept its own norms."""
    backbone = config.get("backbone") if isinstance(config, dict) else None
    if not isinstance(backbone, dict):
        return False
    return backbone.get("_target_") == "metafew.backbones.module.Wrapped" and "norms" not in backbone


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
