"""Normalization schemes, one per file, each defined by ``moments(own, context)``.

``from metafew.norms import TaskNorm`` works for the class of every file in ``conf/norm`` and for the base class.
Modules are imported lazily, when a class is first accessed.
"""

from __future__ import annotations

from typing import Any

BASES = ("metafew.norms.norm.Norm",)


def __getattr__(name: str) -> Any:
    from metafew.config.components import find_class

    return find_class(__name__, "norm", BASES, name)


def __dir__() -> list[str]:
    from metafew.config.components import class_names

    return class_names("norm", BASES)
