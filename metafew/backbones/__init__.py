"""Feature extractors, one network per file.

``from metafew.backbones import Conv4`` works for the class of every file in ``conf/backbone`` and for the base class.
Modules are imported lazily, when a class is first accessed.
"""

from __future__ import annotations

from metafew.config.components import lazy_classes

BASES = ("metafew.backbones.backbone.Backbone",)

__getattr__, __dir__ = lazy_classes(__name__, "backbone", BASES)
