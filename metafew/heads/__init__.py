"""Heads: how a backbone is adapted to a support set and classifies queries. One method per file.

``from metafew.heads import SVM, ProtoNet`` works for the class of every file in ``conf/head`` and for the base classes.
Modules are imported lazily, when a class is first accessed.
"""

from __future__ import annotations

from typing import Any

from metafew.config.components import class_names, find_class

BASES = (
    "metafew.heads.head.Head",
    "metafew.heads.head.FeatureHead",
    "metafew.heads.maps.MapHead",
    "metafew.heads.adapting.AdaptingHead",
)


def __getattr__(name: str) -> Any:
    return find_class(__name__, "head", BASES, name)


def __dir__() -> list[str]:
    return class_names("head", BASES)
