"""Normalization schemes, one per file, each defined by ``moments(own, context)``.

``from metafew.norms import TaskNorm`` works for the class of every file in ``conf/norm`` and for the base class.
Modules are imported lazily, when a class is first accessed.
"""

from __future__ import annotations

from metafew.config.components import lazy_classes

BASES = ("metafew.norms.norm.Norm",)

__getattr__, __dir__ = lazy_classes(__name__, "norm", BASES)
