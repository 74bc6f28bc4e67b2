"""Where classes and functions are now that checkpoints and results of earlier versions name."""

from __future__ import annotations

from typing import Any

MOVED = {
    "metafew.regularizers.": "metafew.objectives.regularizers.",
    "metafew.schedules.": "metafew.training.schedules.",
}
"""Beginnings of dotted paths, old and new."""


def current(config: Any) -> Any:
    """Return plain values with every ``_target_`` in them as it is called now.

    >>> current({"schedule": {"_target_": "metafew.schedules.piecewise", "since": [0]}})
    {'schedule': {'_target_': 'metafew.training.schedules.piecewise', 'since': [0]}}
    """
    if isinstance(config, list):
        return [current(item) for item in config]
    if not isinstance(config, dict):
        return config
    config = {key: current(value) for key, value in config.items()}
    target = config.get("_target_")
    for old, new in MOVED.items():
        if isinstance(target, str) and target.startswith(old):
            config["_target_"] = new + target.removeprefix(old)
    return config
