"""Normalization schemes, one per file, each defined by ``moments(own, context)``.

``from metafew.norms import TaskNorm`` works for the class of every file in ``conf/norm`` and for the base class.
Modules are imported lazily, when a class is first accessed.
"""

from __future__ import annotations

from typing import Any

from metafew.config.components import class_names, find_class

BASES = ("metafew.norms.norm.Norm",)


def __getattr__(name: str) -> Any:
    return find_class(__name__, "norm", BASES, name)


def __dir__() -> list[str]:
    return class_names("norm", BASES)
