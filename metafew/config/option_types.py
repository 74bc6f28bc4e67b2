"""An option has the type that the argument it goes to is annotated with."""

from __future__ import annotations

import inspect
import math
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from metafew.errors import UsageError

KINDS = {
    "int": ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "float": ("a finite number", lambda value: type(value) in (int, float) and math.isfinite(value)),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "str": ("a word", lambda value: isinstance(value, str)),
    "None": ("null", lambda value: value is None),
}


def check(node: DictConfig, path: str = "") -> None:
    """Raise a sentence for the first option below ``node`` that has another type than its argument, or is not finite.

    Of types, only what our own components are annotated with by :data:`KINDS` is looked at: lists are theirs to check.

    Args:
        node: a configuration, or a part of it.
        path: its key in the whole, with a dot at the end.
    """
    for name, annotation in arguments(node).items():
        kinds = [KINDS.get(kind) for kind in annotation.split(" | ")]
        if name in node and all(kinds) and not any(holds(node[name]) for _, holds in kinds):
            wanted = " or ".join(word for word, _ in kinds)
            raise UsageError(f"{path}{name} is {wanted}, not {node[name]}: --cfg job shows it as it is by default")
    for key in node:
        if OmegaConf.is_missing(node, key):
            continue
        if OmegaConf.is_dict(node[key]):
            check(node[key], f"{path}{key}.")
        elif isinstance(node[key], float) and not math.isfinite(node[key]):
            raise UsageError(f"{path}{key} is a finite number, not {node[key]}: --cfg job shows it as it is by default")


def arguments(node: DictConfig) -> dict[str, Any]:
    """Return the annotations of what ``node`` makes, if it is ours."""
    target = node.get("_target_")
    if not isinstance(target, str) or not target.startswith("metafew."):
        return {}
    try:
        signature = inspect.signature(get_object(target))
    except Exception:  # it will not do, which is said where it is called
        return {}
    return {name: str(p.annotation) for name, p in signature.parameters.items()}
