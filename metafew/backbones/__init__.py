"""Feature extractors, one network per file.

``from metafew.backbones import Conv4`` works for the class of every file in ``conf/backbone`` and for the base class.
Modules are imported lazily, when a class is first accessed.
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
