"""Check that each option has the type with which the argument that takes it is annotated."""

from __future__ import annotations

import inspect
import math
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from metafew.errors import UsageError

KINDS = {
    "int": ("an integer", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "float": ("a finite number", lambda value: type(value) in (int, float) and math.isfinite(value)),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "str": ("a word", lambda value: isinstance(value, str)),
    "None": ("null", lambda value: value is None),
}
"""Annotations that are checked, each with its name in a message."""


def check_option_types(node: DictConfig, path: str = "") -> None:
    """Check the type of each option of our own components, and that every number is finite.

    Only annotations made of :data:`KINDS` are checked. Components check lists themselves.

    Args:
        node: a configuration, or a part of one.
        path: key of ``node`` in the configuration, with a trailing dot.

    Raises:
        UsageError: an option has another type than its argument, or is not finite.
    """
    for name, annotation in annotations(node.get("_target_")).items():
        kinds = [KINDS.get(kind) for kind in annotation.split(" | ")]
        if name in node and all(kinds) and not any(matches(node[name]) for _, matches in kinds):
            raise wrong_type(f"{path}{name}", " or ".join(word for word, _ in kinds), node[name])
    for key in node:
        if OmegaConf.is_missing(node, key):
            continue
        if OmegaConf.is_dict(node[key]):
            check_option_types(node[key], f"{path}{key}.")
        elif isinstance(node[key], float) and not math.isfinite(node[key]):
            raise wrong_type(f"{path}{key}", "a finite number", node[key])


def wrong_type(key: str, expected: str, value: Any) -> UsageError:
    """Return the error for an option of a wrong type."""
    return UsageError(f"expected {key} to be {expected}, got {value}: type --cfg job to see its default")


def annotations(target: Any) -> dict[str, str]:
    """Return the annotations of the arguments of ``target``, a dotted path; none where it is not ours."""
    if not isinstance(target, str) or not target.startswith("metafew."):
        return {}
    try:
        signature = inspect.signature(get_object(target))
    except Exception:  # the error is reported where the target is called
        return {}
    return {name: str(parameter.annotation) for name, parameter in signature.parameters.items()}
