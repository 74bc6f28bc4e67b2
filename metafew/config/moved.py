"""New dotted paths for the classes and functions that checkpoints and results of earlier versions name."""

from __future__ import annotations

from typing import Any

MOVED = {
    "metafew.regularizers.": "metafew.objectives.regularizers.",
    "metafew.schedules.": "metafew.training.schedules.",
}
"""Prefixes of dotted paths: old and new."""


def update_paths(config: Any) -> Any:
    """Return plain values in which each ``_target_`` is the current dotted path.

    >>> update_paths({"schedule": {"_target_": "metafew.schedules.piecewise", "since": [0]}})
    {'schedule': {'_target_': 'metafew.training.schedules.piecewise', 'since': [0]}}
    """
    if isinstance(config, list):
        return [update_paths(item) for item in config]
    if not isinstance(config, dict):
        return config
    config = {key: update_paths(value) for key, value in config.items()}
    target = config.get("_target_")
    for old, new in MOVED.items():
        if isinstance(target, str) and target.startswith(old):
            config["_target_"] = new + target.removeprefix(old)
    return config
