"""Feature extractors, one network per file.

``from metafew.backbones import Conv4`` works for the class of every file in ``conf/backbone`` and for the base class.
Modules are imported lazily, when a class is first accessed.
"""

from __future__ import annotations

from typing import Any

from metafew.config.components import class_names, find_class

BASES = ("metafew.backbones.backbone.Backbone",)


def __getattr__(name: str) -> Any:
    return find_class(__name__, "backbone", BASES, name)


def __dir__() -> list[str]:
    return class_names("backbone", BASES)
