"""Heads: how a backbone is adapted to a support set and classifies queries. One method per file.

``from metafew.heads import SVM, ProtoNet`` works for the class of every file in ``conf/head`` and for the base classes.
Modules are imported lazily, when a class is first accessed.
"""

from __future__ import annotations

from metafew.config.components import lazy_classes

BASES = (
    "metafew.heads.head.Head",
    "metafew.heads.head.FeatureHead",
    "metafew.heads.maps.MapHead",
    "metafew.heads.adapting.AdaptingHead",
)

__getattr__, __dir__ = lazy_classes(__name__, "head", BASES)
