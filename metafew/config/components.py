"""Find the classes of components by the YAML files that name them. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module


@cache
def component_classes(group: str) -> dict[str, str]:
    """Return the dotted path of each class that an option of a group makes, by the name of the class.

    >>> component_classes("head")["SVM"], component_classes("norm")["TaskNorm"]
    ('metafew.heads.svm.SVM', 'metafew.norms.tasknorm.TaskNorm')
    """
    from omegaconf import OmegaConf  # only when a class is looked up: the packages of components import this module

    from metafew.config.groups import CONF, describe_groups, load_option

    nodes = (load_option(CONF / group / f"{option}.yaml") for option in describe_groups()[group])
    paths = [str(OmegaConf.select(node, "_target_")) for node in nodes]
    return {path.rpartition(".")[2]: path for path in paths}


def find_class(package: str, group: str, bases: Sequence[str], name: str) -> type:
    """Return a class of a package by its name, for the ``__getattr__`` of the package.

    Args:
        package: the package.
        group: the group whose options the package implements.
        bases: dotted paths of the base classes that the package offers in addition.
        name: the name that was looked up.

    Raises:
        AttributeError: if there is no such class.
    """
    if name[:1].isupper():  # the import system looks up the names of modules here before it imports them
        for path in (*bases, *component_classes(group).values()):
            module, _, found = path.rpartition(".")
            if found == name:
                return getattr(import_module(module), name)
    raise AttributeError(f"module {package!r} has no attribute {name!r}")


def class_names(group: str, bases: Sequence[str]) -> list[str]:
    """Return the names that :func:`find_class` finds, for the ``__dir__`` of a package."""
    return sorted({*component_classes(group), *(path.rpartition(".")[2] for path in bases)})
