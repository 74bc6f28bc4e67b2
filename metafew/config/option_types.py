"""Check options against the type annotations of the arguments that they set."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple, get_args, get_origin

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from metafew.errors import UsageError


class Kind(NamedTuple):
    """A type of options.

    Attributes:
        name: its name in error messages.
        accepts: whether a value is of this type.
    """

    name: str
    accepts: Callable[[Any], bool]


KINDS = {
    "int": Kind("an integer", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "float": Kind("a finite number", lambda value: type(value) in (int, float) and math.isfinite(value)),
    "bool": Kind("true or false", lambda value: isinstance(value, bool)),
    "str": Kind("a word", lambda value: isinstance(value, str)),
    "None": Kind("null", lambda value: value is None),
    "View": Kind("a view with its _target_", lambda value: OmegaConf.is_dict(value) and "_target_" in value),
}
"""The checked annotations."""
OTHERS = ("torch", "pytorch_lightning", "wandb", "hydra")
"""Packages that check their arguments themselves."""
NUMBER = re.compile(r"\b(int|float)\b")
"""A number type in an annotation."""


def check_option_types(node: DictConfig, path: str = "", advice: str = "type --cfg job to see its default") -> None:
    """Check the type of each option of a component, and that every number is finite.

    Only annotations made of :data:`KINDS` are checked. Components check lists themselves.

    Args:
        node: a configuration, or a part of one.
        path: key of ``node`` in the configuration, with a trailing dot.
        advice: what to do instead.

    Raises:
        UsageError: if an option does not have the type of its argument, or is not finite.
    """
    for name, annotation in argument_annotations(node.get("_target_")).items():
        kinds = annotation.split(" | ")
        if name not in node or not KINDS.keys() >= set(kinds):
            continue
        if not any(KINDS[kind].accepts(node[name]) for kind in kinds):
            raise wrong_type(f"{path}{name}", " or ".join(KINDS[kind].name for kind in kinds), node[name], advice)
    for name in numbers_of_others(node.get("_target_")) & {*node}:
        if isinstance(node[name], bool):
            raise wrong_type(f"{path}{name}", "a number", node[name], advice)
    for name, count in numbers_in_tuples(node.get("_target_")).items():
        value = node.get(name, [0] * count)
        if not OmegaConf.is_list(value) or len(value) != count or not all(map(KINDS["float"].accepts, value)):
            raise wrong_type(f"{path}{name}", f"a list of {count} numbers", value, advice)
    for key in node:
        full = path + str(key)
        if OmegaConf.is_missing(node, key):
            continue
        if OmegaConf.is_dict(node[key]):
            check_option_types(node[key], f"{full}.", advice)
        elif OmegaConf.is_list(node[key]):
            if not all(map(math.isfinite, numbers_in(OmegaConf.to_container(node[key])))):
                raise wrong_type(full, "a list whose numbers are finite", node[key], advice)
        elif isinstance(node[key], float) and not math.isfinite(node[key]):
            raise wrong_type(full, "a finite number", node[key], advice)


def numbers_in(value: Any) -> Iterator[float]:
    """Yield the numbers in nested lists and dictionaries.

    >>> list(numbers_in([1, {"lr": [0.5, "a"]}]))
    [1, 0.5]
    """
    if isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from numbers_in(each)
    elif isinstance(value, int | float):
        yield value


def wrong_type(key: str, expected: str, value: Any, advice: str) -> UsageError:
    """Return the error for an option with the wrong type."""
    return UsageError(f"expected {key} to be {expected}, got {value}: {advice}")


def argument_annotations(target: Any) -> dict[str, str]:
    """Return the annotations of the arguments of ``target``, a dotted path; none for classes of :data:`OTHERS`."""
    return {} if is_of_others(target) else annotations_of(target)


def numbers_of_others(target: Any) -> set[str]:
    """Return the names of the numeric arguments of a class of :data:`OTHERS`, which silently accepts true as 1."""
    annotations = annotations_of(target) if is_of_others(target) else {}
    return {name for name, kind in annotations.items() if NUMBER.search(kind) and "bool" not in kind}


def numbers_in_tuples(target: Any) -> dict[str, int]:
    """Return the length of each argument of a class of :data:`OTHERS` that is a tuple of numbers, as ``betas`` is."""
    arguments = parameters_of(target) if is_of_others(target) else {}
    tuples = {name: get_args(kind) for name, kind in arguments.items() if get_origin(kind) is tuple}
    texts = {name: [str(part) for part in parts] for name, parts in tuples.items()}
    return {
        name: len(parts) for name, parts in texts.items() if all(NUMBER.search(p) and "None" not in p for p in parts)
    }


def is_of_others(target: Any) -> bool:
    """Return whether a dotted path is that of a class of :data:`OTHERS`."""
    return isinstance(target, str) and target.partition(".")[0] in OTHERS


def annotations_of(target: Any) -> dict[str, str]:
    """Return the annotations of the arguments of ``target`` as text."""
    annotations = parameters_of(target)
    # Types without ``from __future__ import annotations``, their names with it.
    return {name: kind.__name__ if isinstance(kind, type) else str(kind) for name, kind in annotations.items()}


def parameters_of(target: Any) -> dict[str, Any]:
    """Return the annotations of the arguments of ``target``, a dotted path; none if it cannot be imported."""
    if not isinstance(target, str):
        return {}
    try:
        return annotations_of_arguments(get_object(target))
    except Exception:  # reported when the target is called
        return {}


@cache
def annotations_of_arguments(called: Callable) -> dict[str, Any]:
    """Return the annotations of the arguments of a class or function; cached, as every cell of a sweep needs them."""
    return {name: parameter.annotation for name, parameter in inspect.signature(called).parameters.items()}
