"""Feature extractors, one network per file.

``from metafew.backbones import Conv4`` finds the class of every file in ``conf/backbone``, and the base class; the
module of a class is imported with it.
"""

from __future__ import annotations

from typing import Any

BASES = ("metafew.backbones.backbone.Backbone",)


def __getattr__(name: str) -> Any:
    from metafew.config.components import find_class

    return find_class(__name__, "backbone", BASES, name)


def __dir__() -> list[str]:
    from metafew.config.components import class_names

    return class_names("backbone", BASES)
